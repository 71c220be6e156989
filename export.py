"""Write a trained network as ONNX: a file for each modality, checked against torch before it is put in place.

    python export.py save_model/..._last.t --out model/
    python export.py save_model/..._last.t --out model/ --uint8 --half --dynamic
    python export.py save_model/..._last.t --out model/ --int8 day/ night/

Output 0 is the L2-normalised feature after BNNeck, output 1 that after pooling; the number of images is free.
Beside the networks: config.json and model_card.md. `retrieval/onnx_model.py` reads them without torch.
"""
from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
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
from datasets.images import MEAN, STD, read_batches
from datasets.types import MODALITIES, VISIBLE
from embedding import find_images
from methods.strong import Striped
from model import TwoStream, folded
from retrieval import onnx_model
from retrieval.gallery import read_gallery
from retrieval.onnx_model import Facts
from utils import Parser, UserError, filled, integer, make_folder, run, sha256, warn, write_json

BATCHES = (1, 2, 5)  # of the check
# Of entries and of similarities.
TOLERANCES = {"float32": (1e-4, 1e-5), "half": (5e-3, 2e-3), "int8": (0.2, 0.1)}
CALIBRATION = 256  # images of each modality at most
OUTPUTS = ("bnneck", "pool")
EXTRAS = "pip install -r requirements-export.txt"


def build_parser() -> Parser:
    """The arguments of the export."""
    parser = Parser(description="Write a trained network as ONNX.")
    parser.add_argument("checkpoint", metavar="X.t", help="a file of train.py, or of the published code")
    parser.add_argument("--out", type=filled, default="model/", metavar="DIR", help="folder of the files")
    for flag, side in (("--img_h", "height"), ("--img_w", "width")):
        parser.add_argument(flag, type=integer(16, 4096), metavar="PIXELS",
                            help=f"image {side} (default: the checkpoint's)")
    parser.add_argument("--dynamic", action="store_true",
                        help="take images of any size, the one above by default")
    parser.add_argument("--uint8", action="store_true",
                        help="take bytes (B, height, width, 3) and normalise them inside")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="compute in float16")
    precision.add_argument("--int8", nargs=2, metavar=("VISIBLE", "INFRARED"), help="compute in 8 bits, "
                           "calibrated on two folders of images or galleries of embed.py")
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
    if args.dynamic and isinstance(net, Striped):
        raise UserError(f"--dynamic: {known['method']} pools stripes of a map of fixed height; leave it out")
    facts = Facts(onnx_model.FORMAT, known["method"], known["arch"], VISIBLE, known.get("dataset", "unknown"),
                  digest, args.img_h or known.get("img_h", 288), args.img_w or known.get("img_w", 144),
                  args.dynamic, args.uint8, range=known.get("range"),
                  precision="half" if args.half else "int8" if args.int8 else "float32")
    samples = [sample_paths(source) for source in args.int8] if args.int8 else [None, None]
    out = make_folder(args.out, "--out")
    with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as name:
        folder = Path(name)
        for modality, sample in zip(MODALITIES, samples):
            path, branch = folder / f"{modality}.onnx", dataclasses.replace(facts, modality=modality)
            write_network(path, net, branch, sample)
            verify(path, net, branch)
            print(f"{path.name}: agrees with torch ({facts.precision}, {path.stat().st_size / 1e6:.1f} MB)")
        config = describe(facts, net.dim,
                          {path.name: sha256(path) for path in sorted(folder.iterdir())}, record)
        write_json(folder / "config.json", config)
        card = model_card(config, Path(args.checkpoint).name)
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        if holds_another(out / "config.json", digest):
            warn(f"--out {out}: the networks of another checkpoint were there and are replaced")
        for path in sorted(folder.iterdir()):
            os.replace(path, out / path.name)
    print(f"{out}: {', '.join([*config['files'], 'config.json', 'model_card.md'])}")


# --------------------------------------------------------------------------------------------- what to export
def require_packages() -> None:
    """Raise `UserError` unless this torch can export, and ONNX and onnxruntime are there."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        raise UserError(f"torch {torch.__version__} found, 2.9 or later expected: earlier ones cannot export "
                        f"baddbmm; run: {EXTRAS}")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise UserError(f"{name} is not installed; run: {EXTRAS}") from None


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


def sample_paths(source: str | None) -> list[str] | None:
    """Images to calibrate on: those of a folder, at any depth, or of a gallery of embed.py, spread evenly."""
    if source is None:
        return None
    paths = read_gallery(source).images if source.endswith(".npz") else find_images([source])
    return list(paths)[::-(-len(paths) // CALIBRATION)]


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
        self.net.bottleneck = ScaleAndShift(net.bottleneck)
        if facts.precision == "half":
            self.net.half().bottleneck.float()
            self.net.classifier.float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as `facts` say -> features after BNNeck and after pooling, (B, D) float32."""
        if self.facts.uint8:
            images = images.permute(0, 3, 1, 2).float() * self.pixel_scale + self.pixel_shift
        if self.facts.precision == "half":
            images = images.half()
        output = self.net(**{self.facts.modality: images})
        return F.normalize(output.neck), F.normalize(output.feats)


def write_network(path: Path, net: TwoStream, facts: Facts, sample: Sequence[str] | None) -> None:
    """Export one branch with its facts as metadata; the images of `sample` calibrate its 8 bits."""
    import onnx
    # two images, not one: an example batch of 1 gives a network that fails at other batches
    shape = (2, facts.height, facts.width, 3) if facts.uint8 else (2, 3, facts.height, facts.width)
    example = torch.zeros(shape, dtype=torch.uint8 if facts.uint8 else torch.float32)
    free = (0, *((1, 2) if facts.uint8 else (2, 3))) if facts.dynamic else (0,)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Branch(net, facts).eval(), (example,), str(path), dynamo=True, verbose=False,
                          external_data=False,
                          optimize=False,  # it takes the 1e-12 of GeM for 0; onnxruntime does its own
                          input_names=["images"], output_names=list(OUTPUTS),
                          dynamic_shapes={"images": dict.fromkeys(free, torch.export.Dim.DYNAMIC)})
    if sample is not None:
        quantise(path, facts, sample)
    model = onnx.load(path)
    metadata = {name: json.dumps(value) for name, value in dataclasses.asdict(facts).items()}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def quantise(path: Path, facts: Facts, sample: Sequence[str]) -> None:
    """Put 8-bit convolutions in the place of a network's own; ranges of activations come from images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Batches of the images in the form that the network takes."""

        def __init__(self) -> None:
            self.batches: Iterator = read_batches(sample, facts.spec, 16, 2)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.batches, None)
            if images is None:
                return None
            return {"images": images if facts.uint8 else onnx_model.normalise(images)}

    quant_pre_process(path, path, skip_symbolic_shape=True)
    # 7 of the bits: without VNNI, processors add products of bytes in 16 bits, which could overflow
    quantize_static(path, path, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
                    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    reduce_range=True)


# -------------------------------------------------------------------------------------------------- the check
def verify(path: Path, net: TwoStream, facts: Facts) -> None:
    """Raise `UserError` unless a file says the facts and gives torch's features, and the check sees mistakes.

    What torch makes of wrong images must not pass the same check: where all features are alike, everything
    would.
    """
    model, name = onnx_model.load(path), f"{facts.modality}.onnx"
    if model.facts != facts:
        raise UserError(f"{name}: its metadata reads {model.facts}, {facts} expected")
    usual = (facts.height, facts.width)
    for height, width in (usual, (facts.height + 32, facts.width + 16)) if facts.dynamic else (usual,):
        images = made_images(max(BATCHES), height, width)
        expected = torch_features(net, images, facts.modality)
        wrong = wrong_features(net, images, facts.modality)
        tolerances = choose_tolerances(facts.precision, expected, wrong)
        for batch in BATCHES:
            found = model.features(images[:batch])
            if problem := difference(found, [feats[:batch] for feats in expected], tolerances):
                advice = {"int8": "leave --int8 out", "half": "leave --half out"}.get(
                    facts.precision, "nothing was written")
                raise UserError(f"{name}: not torch's features for {batch} images of {height} x {width}: "
                                f"{problem}; {advice}")
        for what, feats in wrong.items():
            if difference(found, feats, tolerances) is None:
                raise UserError(f"{name}: cannot be checked, as torch's features are the same with {what}; "
                                "export a network that has learnt something")


def choose_tolerances(precision: str, expected: Sequence[np.ndarray],
                      wrong: dict[str, list[np.ndarray]]) -> list[tuple[float, float, float]]:
    """How far entries, similarities and whole features of either kind may be apart.

    Whole features: by half of the way to the nearest wrong ones, on average, which matters for a network that
    rounds.
    """
    least = TOLERANCES["float32"][0]
    return [(*TOLERANCES[precision], max(least, min(distance(right, feats) for feats in others) / 2))
            for right, *others in zip(expected, *wrong.values())]


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean Euclidean distance of the features (B, D) of the same images."""
    return float(np.linalg.norm(first - second, axis=1).mean())


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray],
               tolerances: Sequence[tuple[float, float, float]]) -> str | None:
    """What is wrong with features after pooling and after BNNeck, (B, D) each; None where they agree."""
    for kind, mine, theirs, allowed in zip(results.FEATURES, found, expected, tolerances):
        if mine.shape != theirs.shape:
            return f"{kind}: shape {mine.shape} found, {theirs.shape} expected"
        if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
            return f"{kind}: not finite"
        similarities = np.abs(mine @ mine.T - theirs @ theirs.T).max()
        apart = np.abs(mine - theirs).max(), similarities, distance(mine, theirs)
        for what, value, limit in zip(("entries", "similarities", "features"), apart, allowed):
            if value > limit:
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
def describe(facts: Facts, dim: int, files: dict[str, str], record: dict[str, Any] | None) -> dict[str, Any]:
    """What config.json holds."""
    size = ["height", "width"] if facts.dynamic else [facts.height, facts.width]
    pixels = {"name": "images", "channels": "RGB", "resize": "Pillow LANCZOS", "mean": MEAN, "std": STD}
    pixels |= {"dtype": "uint8", "shape": ["batch", *size, 3], "normalised": "inside"} if facts.uint8 else {
        "dtype": "float32", "shape": ["batch", 3, *size], "normalised": "outside: (x / 255 - mean) / std"}
    tested = record and {"protocol": record["protocol"]["name"], **{
        name: record.get(name) for name in ("extras", "mean", "std", "calibration", "thresholds")}}
    return {**{name: value for name, value in dataclasses.asdict(facts).items() if name != "modality"},
            "input": pixels,
            "outputs": [{"name": name, "shape": ["batch", dim], "normalised": "L2"} for name in OUTPUTS],
            "files": files, "tested": tested}


def holds_another(path: Path, digest: str) -> bool:
    """Whether a config.json is there and of another checkpoint than that of this SHA-256."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sha256"] != digest
    except (OSError, ValueError, KeyError, TypeError):
        return False


def model_card(config: dict[str, Any], checkpoint: str) -> str:
    """The model card, Markdown."""
    tested, pixels = config["tested"], config["input"]
    rows = score_rows(tested) if tested else ["Not tested: `test.py` wrote no record of this checkpoint."]
    return CARD.format(checkpoint=checkpoint, scores="\n".join(rows), names=", ".join(config["files"]),
                       shape=" x ".join(map(str, pixels["shape"])), normalised=pixels["normalised"],
                       **{name: value for name, value in config.items() if isinstance(value, (str, int))})


def score_rows(tested: dict[str, Any]) -> list[str]:
    """The scores and thresholds of a test as Markdown tables."""
    measures = {"rank-1": "Rank-1", "rank-10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}
    rows = ["Tested by `test.py` (torch) on "
            f"{' + '.join([tested['protocol'], *tested['extras']])}.", "",
            *table_head("feature", *measures.values())]
    rows += [f"| {feature} | {' | '.join(f'{values[name]:.2%}' for name in measures)} |"
             for feature, values in tested["mean"].items()]
    rows += ["", "The same person? Yes above a threshold of the cosine similarity, "
             f"calibrated on {tested['calibration']}.", "",
             *table_head("feature", "direction", "false accept rate", "threshold",
                         "true accept rate", "impostor pairs")]
    return rows + [f"| {feature} | {direction} | {rate} | {found['threshold']:.4f} | "
                   f"{found['true_accept_rate']:.2%} | {found['impostor_pairs']:,} |"
                   for feature, directions in (tested["thresholds"] or {}).items()
                   for direction, rates in directions.items() for rate, found in rates.items()]


def table_head(*names: str) -> list[str]:
    """The first two lines of a Markdown table."""
    return [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * len(names))} |"]


CARD = """# {method} on {arch}: visible-infrared person re-identification

| | |
| --- | --- |
| files | {names} |
| trained on | {dataset} |
| checkpoint | {checkpoint}, SHA-256 {sha256} |
| input | RGB, {shape}, resized to {height} x {width} (height x width), normalised {normalised} |
| outputs | 0: L2-normalised feature after BNNeck; 1: after pooling |
| precision | {precision} |

## Scores

{scores}

## Limits of use

- It compares crops of whole persons, one a crop. It finds nobody in a picture, and does not read faces.
- Scores and thresholds hold for the cameras, persons and crops of the data named above. On other cameras,
  calibrate again (`test.py`) before a yes or no is believed.
- A similarity is a reason to look, no proof of identity: at a false accept rate of 0.001, a gallery of 10,000
  others holds about ten that are accepted. A person decides, and can see why.
- Data of persons: whoever uses it needs a lawful basis, and keeps to the terms of the data it was trained on.
"""


if __name__ == "__main__":
    run(main)
