"""Write a trained network as ONNX: a file for each modality, checked against torch before it is put in place.

    python export.py save_model/..._last.t --out model/
    python export.py save_model/..._last.t --out model/ --uint8 --half

Output 0 is the L2-normalised feature after BNNeck, output 1 that after pooling; the number of images is free.
Beside the networks: config.json and model_card.md. `retrieval/onnx_model.py` reads them without torch.
"""
from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import results
from checkpoint import load_network
from data_loader import normalise
from datasets.images import MEAN, STD
from datasets.types import FEATURES, MODALITIES, VISIBLE
from retrieval import onnx_model
from retrieval.onnx_model import Facts
from two_stream import TwoStream, folded
from command_line import Parser, add_size_arguments, filled, run
from utils import UserError, as_user_error, make_folder, sha256, warn, write_json

BATCHES = (1, 2, 5)  # of the check
TOLERANCES = {"float32": (1e-4, 1e-5), "half": (5e-3, 2e-3)}  # of entries and of similarities
OUTPUTS = ("bnneck", "pool")
CARD = Path(__file__).with_name("retrieval") / "model_card.md"


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Write a trained network as ONNX.")
    parser.add_argument("checkpoint", metavar="X.t", help="a file of train.py, or of the published code")
    parser.add_argument("--out", type=filled, default="model/", metavar="DIR", help="folder of the files")
    add_size_arguments(parser, of_checkpoint=True)
    parser.add_argument("--uint8", action="store_true",
                        help="take bytes (B, height, width, 3) and normalise them inside")
    parser.add_argument("--half", action="store_true", help="compute in float16")
    parser.add_argument("--results", type=filled, metavar="results.json",
                        help="record of test.py for the model card (default: "
                        f"the checkpoint's in {results.FOLDER}/)")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Export from the arguments of the command line."""
    args = build_parser().parse_args(words)
    require_packages()
    net, known = load_network(args.checkpoint, "checkpoint")
    net.eval()
    digest = sha256(Path(args.checkpoint))
    record = find_record(digest, args.results)
    facts = Facts(onnx_model.FORMAT, known["method"], known["arch"], VISIBLE, known.get("dataset", "unknown"),
                  digest, args.img_h or known.get("img_h", 288), args.img_w or known.get("img_w", 144),
                  args.uint8, "half" if args.half else "float32", known.get("range"))
    out = make_folder(args.out, "--out")
    with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as name:
        folder = Path(name)
        for modality in MODALITIES:
            path, branch = folder / f"{modality}.onnx", dataclasses.replace(facts, modality=modality)
            write_network(path, net, branch)
            verify(path, net, branch)
            print(f"{path.name}: agrees with torch ({facts.precision}, {path.stat().st_size / 1e6:.1f} MB)")
        config = describe(facts, net.copies * net.dim,
                          {path.name: sha256(path) for path in sorted(folder.iterdir())}, record)
        write_json(folder / "config.json", config)
        card = model_card(config, Path(args.checkpoint).name)
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        for path in sorted(folder.iterdir()):
            os.replace(path, out / path.name)
    print(f"{out}: {', '.join([*config['files'], 'config.json', 'model_card.md'])}")


def require_packages() -> None:
    """Raise `UserError` unless this torch can export, and ONNX and onnxruntime are there."""
    install = f"run: pip install -r {onnx_model.REQUIREMENTS}"
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        raise UserError(f"torch {torch.__version__} found, 2.9 or later expected: earlier ones cannot export "
                        f"baddbmm; {install}")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with as_user_error(f"{name} does not load", install):
            importlib.import_module(name)


# ------------------------------------------------------------------------------------------------ the network
class ScaleAndShift(nn.Module):
    """What a BatchNorm1d does in testing."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", norm.bias.detach() - norm.running_mean * scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Branch(nn.Module):
    """A modality's network as exported: BatchNorm and BNNeck a scale and shift, outputs normalised."""

    def __init__(self, net: TwoStream, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.register_buffer("pixel_scale", 1 / (255 * torch.tensor(STD)[:, None, None]))
        self.register_buffer("pixel_shift", -(torch.tensor(MEAN) / torch.tensor(STD))[:, None, None])
        self.net = folded(net)
        for module in list(self.net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm1d):
                    setattr(module, name, ScaleAndShift(child))
        if facts.precision == "half":
            self.net.half()
            for name in net.head:
                getattr(self.net, name).float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as `facts` say -> features after BNNeck and after pooling, (B, D) float32."""
        if self.facts.uint8:
            images = images.permute(0, 3, 1, 2).float() * self.pixel_scale + self.pixel_shift
        if self.facts.precision == "half":
            images = images.half()
        output = self.net(**{self.facts.modality: images})
        return F.normalize(output.neck), F.normalize(output.feats)


def write_network(path: Path, net: TwoStream, facts: Facts) -> None:
    """Export one branch with its facts as metadata."""
    import onnx
    # two images, not one: an example batch of 1 gives a network that fails at other batches
    shape = (2, facts.height, facts.width, 3) if facts.uint8 else (2, 3, facts.height, facts.width)
    example = torch.zeros(shape, dtype=torch.uint8 if facts.uint8 else torch.float32)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Branch(net, facts).eval(), (example,), str(path), dynamo=True, verbose=False,
                          external_data=False,
                          optimize=False,  # it takes the 1e-12 of GeM for 0; onnxruntime does its own
                          input_names=["images"], output_names=list(OUTPUTS),
                          dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}})
    model = onnx.load(path)
    metadata = {name: json.dumps(value) for name, value in dataclasses.asdict(facts).items()}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


# -------------------------------------------------------------------------------------------------- the check
def verify(path: Path, net: TwoStream, facts: Facts) -> None:
    """Raise `UserError` unless a file gives torch's features, and the check sees mistakes.

    What torch makes of wrong images must not pass the same check: where all features are alike, everything
    would.
    """
    model, name = onnx_model.load(path), f"{facts.modality}.onnx"
    images = made_images(max(BATCHES), facts.height, facts.width)
    expected = torch_features(net, images, facts.modality)
    for batch in BATCHES:
        found = model.features(images[:batch])
        if problem := difference(found, [feats[:batch] for feats in expected], facts.precision):
            advice = "leave --half out" if facts.precision == "half" else "nothing was written"
            raise UserError(f"{name}: not torch's features for {batch} images: {problem}; {advice}")
    for what, feats in wrong_features(net, images, facts.modality).items():
        if difference(found, feats, facts.precision) is None:
            raise UserError(f"{name}: cannot be checked, as torch's features are the same with {what}; "
                            "export a network that has learnt something")


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], precision: str) -> str | None:
    """What is wrong with features after pooling and after BNNeck, (B, D) each; None where they agree."""
    for kind, mine, theirs in zip(FEATURES, found, expected):
        if mine.shape != theirs.shape:
            return f"{kind}: shape {mine.shape} found, {theirs.shape} expected"
        apart = np.abs(mine - theirs).max(), np.abs(mine @ mine.T - theirs @ theirs.T).max()
        for what, value, limit in zip(("entries", "similarities"), apart, TOLERANCES[precision]):
            if not value <= limit:  # NaN is not
                return f"{kind}: {what} {value:.1e} apart, {limit:.1e} allowed"
    return None


def wrong_features(net: TwoStream, images: np.ndarray, modality: str) -> dict[str, list[np.ndarray]]:
    """What torch makes, by name, of images that are not what they should be, or in the other branch."""
    (other,) = {*MODALITIES} - {modality}
    wrong = {"BGR images": (images[..., ::-1], modality), "mirrored images": (images[:, :, ::-1], modality),
             "each other's images": (np.roll(images, 1, 0), modality), "the other branch": (images, other)}
    own, others = ([value for key, value in net.state_dict().items() if name in key.split(".")]
                   for name in (modality, other))
    if all(map(torch.equal, own, others)):
        warn(f"{modality}.onnx: both branches hold the same weights; nothing tells them apart")
        del wrong["the other branch"]
    return {name: torch_features(net, np.ascontiguousarray(pixels), branch)
            for name, (pixels, branch) in wrong.items()}


@torch.inference_mode()
def torch_features(net: TwoStream, images: np.ndarray, modality: str) -> list[np.ndarray]:
    """The features of (B, height, width, 3) uint8 after pooling and after BNNeck by torch, nothing folded."""
    output = net(**{modality: normalise(torch.from_numpy(images))})
    return [F.normalize(feats).numpy() for feats in (output.feats, output.neck)]


def made_images(count: int, height: int, width: int) -> np.ndarray:
    """Images of large random patches (count, height, width, 3) uint8: unlike each other, mirrored and BGR."""
    small = map(Image.fromarray, np.random.default_rng(0).integers(0, 256, (count, 6, 3, 3), dtype=np.uint8))
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) for image in small])


# ----------------------------------------------------------------------------------------------------- report
def find_record(digest: str, path: str | None) -> dict[str, Any] | None:
    """The record of a test of this checkpoint alone: the one given, or the latest in the folder of results.

    None if there is none; raises `UserError` where the one given is of another checkpoint.
    """
    there = Path(results.FOLDER).glob("**/*.json")
    for candidate in [Path(path)] if path else sorted(there, key=os.path.getmtime, reverse=True):
        try:
            record = json.loads(candidate.read_text(encoding="utf-8"))
            if record["checkpoint"]["sha256"] == [digest]:
                return record
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another file of JSON
    if path:
        raise UserError(f"--results {path}: no record of a test of this checkpoint found; name one that "
                        "test.py wrote for it")
    return None


def describe(facts: Facts, dim: int, files: dict[str, str], record: dict[str, Any] | None) -> dict[str, Any]:
    """What config.json holds."""
    size = [facts.height, facts.width]
    inside = {"dtype": "uint8", "shape": ["batch", *size, 3], "normalised": "inside"}
    outside = {"dtype": "float32", "shape": ["batch", 3, *size],
               "normalised": "outside: (x / 255 - mean) / std"}
    tested = record and {"protocol": record["protocol"]["name"], **{
        name: record.get(name) for name in ("extras", "mean", "std", "calibration", "thresholds")}}
    return {**{name: value for name, value in dataclasses.asdict(facts).items() if name != "modality"},
            "input": {"name": "images", "channels": "RGB", "resize": "Pillow LANCZOS", "mean": MEAN,
                      "std": STD, **(inside if facts.uint8 else outside)},
            "outputs": [{"name": name, "shape": ["batch", dim], "normalised": "L2"} for name in OUTPUTS],
            "files": files, "tested": tested}


def model_card(config: dict[str, Any], checkpoint: str) -> str:
    """The model card, Markdown."""
    tested, pixels = config["tested"], config["input"]
    rows = score_rows(tested) if tested else ["Not tested: `test.py` wrote no record of this checkpoint."]
    return CARD.read_text(encoding="utf-8").format(
        checkpoint=checkpoint, scores="\n".join(rows), names=", ".join(config["files"]),
        shape=" x ".join(map(str, pixels["shape"])), normalised=pixels["normalised"],
        **{name: value for name, value in config.items() if isinstance(value, (str, int))})


def score_rows(tested: dict[str, Any]) -> list[str]:
    """The scores and thresholds of a test as Markdown tables."""
    measures = {"rank-1": "Rank-1", "rank-10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}
    scores = [[feature, *(f"{values[name]:.2%}" for name in measures)]
              for feature, values in tested["mean"].items()]
    rates = [[feature, direction, rate, f"{found['threshold']:.4f}", f"{found['true_accept_rate']:.2%}",
              f"{found['impostor_pairs']:,}"] for feature, directions in (tested["thresholds"] or {}).items()
             for direction, known in directions.items() for rate, found in known.items()]
    return [f"Searched by `test.py` (torch) on {' + '.join([tested['protocol'], *tested['extras']])}.", "",
            *table("feature", *measures.values(), rows=scores), "",
            "The same person? Yes above a threshold of the cosine similarity, calibrated on "
            f"{tested['calibration']}.", "",
            *table("feature", "direction", "false accept rate", "threshold", "true accept rate",
                   "impostor pairs", rows=rates)]


def table(*names: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    return [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]


if __name__ == "__main__":
    run(main)
