"""Write a trained network as ONNX: one file for each modality, checked against torch before it is put in place.

    python export.py save_model/..._last.t --out model/
    python export.py save_model/..._last.t --out model/ --uint8 --half --dynamic
    python export.py save_model/..._last.t --out model/ --int8 day/ night/

Output 0 is the L2-normalised feature after BNNeck, output 1 that after pooling; the number of images is free.
Beside the networks: config.json and model_card.md. `onnx_model.py` reads them without torch.
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

import onnx_model
import results
from checkpoint import as_checkpoint, is_own, is_published, load_file, load_published
from data_loader import normalise
from datasets.files import IMAGE_SUFFIXES
from datasets.images import MEAN, STD, read_batches
from datasets.types import INFRARED, MODALITIES, VISIBLE
from model import TwoStream, folded, pool
from onnx_model import Facts
from utils import Parser, UserError, filled, integer, make_folder, run, sha256, warn, write_json

BATCHES = (1, 2, 5)  # of the check
TOLERANCES = {"float32": (1e-4, 1e-5), "half": (5e-3, 2e-3), "int8": (0.1, 0.1)}  # of entries, and of similarities
CALIBRATION = 256  # images of each modality at most
OUTPUTS = ("bnneck", "pool")
EXTRAS = "pip install -r requirements-export.txt"


def build_parser() -> Parser:
    """The arguments of the export."""
    parser = Parser(description="Write a trained network as ONNX.")
    parser.add_argument("checkpoint", metavar="X.t", help="a file of train.py, or of the published code")
    parser.add_argument("--out", type=filled, default="model/", metavar="DIR", help="folder of the files")
    for flag, side in (("--img_h", "height"), ("--img_w", "width")):
        parser.add_argument(flag, type=integer(16, 4096), metavar="PIXELS", help=f"image {side} (default: the checkpoint's)")
    parser.add_argument("--dynamic", action="store_true", help="take images of any size, these above being the usual one")
    parser.add_argument("--uint8", action="store_true", help="take bytes (B, height, width, 3) and normalise them inside")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="compute in float16")
    precision.add_argument("--int8", nargs=2, metavar=("VISIBLE", "INFRARED"),
                           help="compute in 8 bits, calibrated on two folders of images or galleries of embed.py")
    parser.add_argument("--results", type=filled, metavar="results.json",
                        help=f"record of test.py for the model card (default: one of this checkpoint in {results.FOLDER}/)")
    return parser


def main() -> None:
    """Export from the arguments of the command line."""
    args = build_parser().parse_args()
    require_packages()
    net, known = load_network(args.checkpoint)
    digest = sha256(Path(args.checkpoint))
    record = find_record(digest, args.results)
    precision = "half" if args.half else "int8" if args.int8 else "float32"
    facts = [Facts(onnx_model.FORMAT, known["method"], known["arch"], modality, known.get("dataset", "unknown"), digest,
                   args.img_h or known.get("img_h", 288), args.img_w or known.get("img_w", 144), args.dynamic, args.uint8,
                   precision) for modality in MODALITIES]
    samples = dict(zip(MODALITIES, map(sample_paths, args.int8 or [None, None])))
    out = make_folder(args.out, "--out")
    with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as folder:
        for branch in facts:
            path = Path(folder) / f"{branch.modality}.onnx"
            write_network(path, net, branch, samples[branch.modality])
            verify(path, net, branch)
            print(f"{branch.modality}.onnx: agrees with torch ({precision}, {path.stat().st_size / 1e6:.1f} MB)")
        files = {path.name: sha256(path) for path in sorted(Path(folder).iterdir())}
        config = describe(facts[0], net.dim, files, record)
        write_json(Path(folder) / "config.json", config)
        (Path(folder) / "model_card.md").write_text(model_card(config, Path(args.checkpoint).name), encoding="utf-8")
        for path in sorted(Path(folder).iterdir()):
            os.replace(path, out / path.name)
    print(f"{out}: {', '.join([*files, 'config.json', 'model_card.md'])}")


# -------------------------------------------------------------------------------------------------- what to export
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


def load_network(path: str) -> tuple[TwoStream, dict[str, Any]]:
    """The network of a checkpoint, ours or a published one, in eval mode, and what the file says of it."""
    content = load_file(path, "checkpoint")
    if not is_own(content) and isinstance(content, dict) and is_published(content.get("net")):
        return load_published(content, path)[:2]
    checkpoint = as_checkpoint(content, path, "checkpoint")
    return checkpoint.network(path, "checkpoint").eval(), checkpoint.args


def find_record(digest: str, path: str | None) -> dict[str, Any] | None:
    """The record of a test of this checkpoint, given or in the folder of results (the latest); None if there is none.

    Raises `UserError` where the one that is given is of another checkpoint.
    """
    found = [Path(path)] if path else sorted(Path(results.FOLDER).glob("**/*.json"), key=os.path.getmtime, reverse=True)
    for candidate in found:
        try:
            record = json.loads(candidate.read_text(encoding="utf-8"))
            if digest in record["checkpoint"]["sha256"]:
                return record
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if path:
        raise UserError(f"--results {path}: no record of a test of this checkpoint; name one that test.py wrote for it")
    return None


def sample_paths(source: str | None) -> list[str] | None:
    """Images to calibrate on: those of a folder, at any depth, or of a gallery of embed.py, spread evenly."""
    if source is None:
        return None
    if source.endswith(".npz") and Path(source).is_file():
        with np.load(source) as gallery:
            paths = gallery["paths"].tolist() if "paths" in gallery else []
    else:
        paths = sorted(str(path) for path in Path(source).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"--int8 {source}: no images found; a folder of images, or a gallery of embed.py, expected")
    return paths[::-(-len(paths) // CALIBRATION)]


# --------------------------------------------------------------------------------------------------- the network
class Branch(nn.Module):
    """One modality's network as it is exported: BatchNorm folded, BNNeck a scale and a shift, outputs normalised."""

    def __init__(self, net: TwoStream, facts: Facts) -> None:
        super().__init__()
        self.facts, self.pooling, neck = facts, net.method.pooling, net.bottleneck
        with torch.no_grad():
            scale = neck.weight / (neck.running_var + neck.eps).sqrt()
            self.register_buffer("scale", scale)
            self.register_buffer("shift", neck.bias - neck.running_mean * scale)
        self.register_buffer("pixel_scale", 1 / (255 * torch.tensor(STD)[:, None, None]))
        self.register_buffer("pixel_shift", -(torch.tensor(MEAN) / torch.tensor(STD))[:, None, None])
        self.net = folded(net).half() if facts.precision == "half" else folded(net)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as `facts` say -> features after BNNeck and after pooling, (B, D) float32."""
        if self.facts.uint8:
            images = images.permute(0, 3, 1, 2).float() * self.pixel_scale + self.pixel_shift
        if self.facts.precision == "half":
            images = images.half()
        feats = pool(self.net.feature_maps({self.facts.modality: images})[0].float(), self.pooling)
        return F.normalize(feats * self.scale + self.shift), F.normalize(feats)


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
        torch.onnx.export(Branch(net, facts).eval(), (example,), str(path), dynamo=True, verbose=False, external_data=False,
                          optimize=False,  # it takes the 1e-12 of GeM for 0; onnxruntime does its own
                          input_names=["images"], output_names=list(OUTPUTS),
                          dynamic_shapes={"images": dict.fromkeys(free, torch.export.Dim.DYNAMIC)})
    if sample is not None:
        quantise(path, facts, sample)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in dataclasses.asdict(facts).items()})
    onnx.save(model, path)


def quantise(path: Path, facts: Facts, sample: Sequence[str]) -> None:
    """Put 8-bit convolutions in the place of a network's own; ranges of activations come from images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """Batches of the images in the form that the network takes."""

        def __init__(self) -> None:
            self.batches: Iterator = read_batches(sample, facts.height, facts.width, 16, 2)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.batches, None)
            if images is None:
                return None
            return {"images": np.stack(images) if facts.uint8 else onnx_model.normalise(np.stack(images))}

    quantize_static(path, path, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"], per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True)


# ------------------------------------------------------------------------------------------------------ the check
def verify(path: Path, net: TwoStream, facts: Facts) -> None:
    """Raise `UserError` unless a file says the facts and gives torch's features, by a check that sees mistakes.

    Such are the other branch, BGR and mirrored images: the same check must refuse them. So must it the features
    of another image, or it would say nothing of a network whose features are all alike.
    """
    model = onnx_model.load(path)
    if model.facts != facts:
        raise UserError(f"{path.name}: its metadata reads {model.facts}, {facts} expected")
    sizes = [(facts.height, facts.width), *([(facts.height + 32, facts.width + 16)] if facts.dynamic else [])]
    for height, width in sizes:
        images = made_images(max(BATCHES), height, width)
        expected = torch_features(net, images, facts.modality)
        wrong = wrong_features(net, images, facts.modality)
        tolerances = choose_tolerances(facts.precision, expected, wrong)
        for batch in BATCHES:
            problem = difference(model.features(images[:batch]), [feats[:batch] for feats in expected], tolerances)
            if problem:
                raise UserError(f"{facts.modality}.onnx: not torch's features for {batch} images of {height} x {width}: {problem}; "
                                "nothing was written" + ("; leave --int8 out" if facts.precision == "int8" else ""))
        for name, feats in wrong.items():
            if difference(model.features(images), feats, tolerances) is None:
                raise UserError(f"{facts.modality}.onnx: cannot be checked, as torch's features are the same with {name}; "
                                "export a network that has learnt something")


def choose_tolerances(precision: str, expected: Sequence[np.ndarray],
                      wrong: dict[str, list[np.ndarray]]) -> list[tuple[float, float]]:
    """What entries and similarities of either feature may differ by: for a network that rounds, by at most half of
    the way to the nearest wrong features.
    """
    entries, similarities = TOLERANCES[precision]
    if precision == "float32":
        return [(entries, similarities)] * len(expected)
    nearest = [min(np.abs(feats[kind] - expected[kind]).max() for feats in wrong.values()) for kind in range(len(expected))]
    return [(min(entries, distance / 2), similarities) for distance in nearest]


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray],
               tolerances: Sequence[tuple[float, float]]) -> str | None:
    """What is wrong with features after pooling and after BNNeck, (B, D) each; None where they agree."""
    for kind, mine, theirs, allowed in zip(results.FEATURES, found, expected, tolerances):
        if mine.shape != theirs.shape or not np.isfinite(mine).all():
            return f"{kind}: shape {mine.shape}, finite: {np.isfinite(mine).all()}; {theirs.shape} and finite expected"
        apart = np.abs(mine - theirs).max(), np.abs(mine @ mine.T - theirs @ theirs.T).max()
        if apart[0] > allowed[0] or apart[1] > allowed[1]:
            return (f"{kind}: entries {apart[0]:.1e} and similarities {apart[1]:.1e} apart, {allowed[0]:.1e} and "
                    f"{allowed[1]:.1e} allowed")
    return None


def wrong_features(net: TwoStream, images: np.ndarray, modality: str) -> dict[str, list[np.ndarray]]:
    """What torch makes of images that are not what they should be, by name; each differs in something from the right."""
    other = INFRARED if modality == VISIBLE else VISIBLE
    wrong = {"BGR images": (images[..., ::-1], modality), "mirrored images": (images[:, :, ::-1], modality),
             "each other's images": (np.roll(images, 1, 0), modality)}
    branches = [nn.ModuleList([net.streams[name], *([net.similarity[name]] if net.similarity else [])]).state_dict()
                for name in MODALITIES]
    if all(torch.equal(value, branches[1][name]) for name, value in branches[0].items()):
        warn(f"{modality}.onnx: both branches hold the same weights; nothing tells them apart")
    else:
        wrong["the other branch"] = (images, other)
    return {name: torch_features(net, np.ascontiguousarray(pixels), branch) for name, (pixels, branch) in wrong.items()}


@torch.inference_mode()
def torch_features(net: TwoStream, images: np.ndarray, modality: str) -> list[np.ndarray]:
    """The features of (B, height, width, 3) uint8 after pooling and after BNNeck by torch, nothing folded."""
    output = net(**{modality: normalise(torch.from_numpy(images))})
    return [F.normalize(feats).numpy() for feats in (output.feats, output.neck)]


def made_images(count: int, height: int, width: int) -> np.ndarray:
    """Images of large random patches, (count, height, width, 3) uint8: unlike each other, their mirror images and BGR."""
    small = np.random.default_rng(0).integers(0, 256, (count, 6, 3, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)) for image in small])


# --------------------------------------------------------------------------------------------------------- report
def describe(facts: Facts, dim: int, files: dict[str, str], record: dict[str, Any] | None) -> dict[str, Any]:
    """What config.json holds."""
    size = ["batch", *(["height", "width"] if facts.dynamic else [facts.height, facts.width])]
    config = {name: value for name, value in dataclasses.asdict(facts).items() if name != "modality"}
    tested = {"protocol": record["protocol"]["name"], "extras": record["extras"], "mean": record["mean"], "std": record["std"],
              "calibration": record.get("calibration"), "thresholds": record.get("thresholds", {})} if record else None
    return {**config, "input": {"name": "images", "dtype": "uint8" if facts.uint8 else "float32",
                                "shape": [*size, 3] if facts.uint8 else [size[0], 3, *size[1:]], "channels": "RGB",
                                "mean": MEAN, "std": STD, "resize": "Pillow LANCZOS",
                                "normalised": "inside" if facts.uint8 else "outside: (x / 255 - mean) / std"},
            "outputs": [{"name": name, "shape": ["batch", dim], "normalised": "L2"} for name in OUTPUTS],
            "files": files, "tested": tested}


def model_card(config: dict[str, Any], checkpoint: str) -> str:
    """The model card, Markdown."""
    tested, rows = config["tested"], []
    if tested:
        rows = [f"Tested by `test.py` on {' + '.join([tested['protocol'], *tested['extras']])}, float32 in torch.", "",
                "| feature | Rank-1 | Rank-10 | mAP | mINP |", "| --- | --- | --- | --- | --- |"]
        rows += [f"| {feature} | " + " | ".join(f"{100 * values[name]:.2f} %" for name in ("rank-1", "rank-10", "mAP", "mINP")) + " |"
                 for feature, values in tested["mean"].items()]
        rows += ["", f"Same person? Yes above a threshold of the cosine similarity, calibrated on {tested['calibration']}:", "",
                 "| feature | direction | false accept rate | threshold | true accept rate | impostor pairs |",
                 "| --- | --- | --- | --- | --- | --- |"]
        rows += [f"| {feature} | {direction} | {rate} | {found['threshold']:.4f} | {found['true_accept_rate']:.2%} | "
                 f"{found['impostor_pairs']:,} |" for feature, directions in tested["thresholds"].items()
                 for direction, rates in directions.items() for rate, found in rates.items()]
    return CARD.format(checkpoint=checkpoint, scores="\n".join(rows) or "Not tested: `test.py` wrote no record of this checkpoint.",
                       shape=" x ".join(map(str, config["input"]["shape"])), names=", ".join(config["files"]),
                       normalised=config["input"]["normalised"], **{name: config[name] for name in (
                           "method", "arch", "dataset", "sha256", "precision", "height", "width")})


CARD = """# {method} on {arch}: visible-infrared person re-identification

| | |
| --- | --- |
| files | {names} |
| trained on | {dataset} |
| checkpoint | {checkpoint}, SHA-256 {sha256} |
| input | RGB, {shape}, resized to {height} x {width} (height x width) by Pillow LANCZOS; normalised {normalised} |
| outputs | 0: L2-normalised feature after BNNeck; 1: after pooling |
| precision | {precision} |

## Scores

{scores}

## Limits of use

- It compares crops of whole persons, one a crop. It finds nobody in a picture, and does not read faces.
- Scores and thresholds hold for the cameras, persons and cropping of the data named above. On other cameras, calibrate
  again (`test.py`) before a yes or no is believed.
- A similarity is a reason to look, no proof of identity: at a false accept rate of 0.001, a gallery of 10,000 others holds
  about ten that are accepted. A person decides, and can see why.
- Data of persons: whoever uses it needs a lawful basis, and must keep to the terms of the data that it was trained on.
"""


if __name__ == "__main__":
    run(main)
