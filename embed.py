"""Features of images for search.py: a folder, a list of files, tracklets, or boxes in larger images.

    python embed.py night/ --modality infrared --resume save_model/..._last.t --out night.npz
    python embed.py day/ --modality visible --resume save_model/..._last.t --out day.npz --append

Exit status 3: some files could not be read; they are named and left out.
"""
from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.folders import RANGE, require_range
from datasets.types import MODALITIES, Features, ImageSpec
from embedding import Rows, average, embed_batches, find_images, find_tracklets, read_boxes
from features import Extraction, Network, join, torch_network, with_mirror
from results import FEATURES
from retrieval.gallery import Gallery, Record, read_gallery, require_same, write_gallery
from utils import GPU, Interrupted, Parser, UserError, filled, number, make_folder, run, sha256, warn


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Write the features of images to a file for search.py.")
    parser.add_argument("inputs", nargs="*", metavar="INPUT",
                        help="folders of images (any depth), image files, or .txt files that name one a line")
    parser.add_argument("--modality", choices=MODALITIES, required=True, help="of all these images")
    parser.add_argument("--resume", "-r", type=filled, required=True, metavar="PATH", help="checkpoint")
    parser.add_argument("--out", type=filled, required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument("--append", action="store_true", help="add what is not in that file yet")
    parser.add_argument("--tracklets", action="store_true",
                        help="each folder is one tracklet: the mean of its features")
    parser.add_argument("--boxes", type=filled, metavar="FILE.csv",
                        help="crops of larger images: columns path, x, y, w, h and perhaps track")
    parser.add_argument("--strict", action="store_true", help="stop at a file that cannot be read")
    parser.add_argument("--flip", action="store_true", help="add the features of the mirror image")
    parser.add_argument("--float16", action="store_true", help="half the bytes on disk")
    for flag, side in (("--img_h", "height"), ("--img_w", "width")):
        parser.add_argument(flag, type=number(16, 4096), metavar="PIXELS",
                            help=f"image {side} (default: the checkpoint's)")
    parser.add_argument("--range", **RANGE, help="raw values that become black and white in images of more "
                        "than 8 bits (default: the checkpoint's)")
    parser.add_argument("--gpu", **GPU)
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), default="off",
                        help="bfloat16 autocast; auto: where the device has it and the backbone gains by it")
    parser.add_argument("--test-batch", type=number(1), default=64, metavar="N", help="images a step")
    parser.add_argument("--workers", type=number(0, 256), default=4, metavar="N",
                        help="parallel readers of images (0: none but the program itself)")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Embed from the arguments of the command line."""
    args = build_parser().parse_args(words)
    out = check_out(args.out)
    rows, kind = find_rows(args)
    network, facts = load_network(args)
    record = make_record(args, facts, kind)
    old = read_gallery(out) if args.append and out.exists() else None
    if old is not None:
        require_same(record, old.record, tuple(vars(record)), f"--append {out}: these images and the file")
        present = set(map(os.path.abspath, old.paths))
        rows = {name: images for name, images in rows.items() if os.path.abspath(name) not in present}
    unreadable: dict[str, str] = {}
    parts, stopped = embed_until_stopped(network, rows, record, args, unreadable)
    features, images = average(join(parts), rows, unreadable)
    for error in unreadable.values():
        warn(f"{error} (left out)")
    if features.paths or not stopped:
        write(out, old, features, images, record, args.float16)
    if stopped:
        kind = f"new {kind}" if old is not None else kind
        raise Interrupted(stopped, f"stopped with {len(features.paths)} of {len(rows)} {kind} in {out}; "
                                   "--append goes on")
    if unreadable:
        sys.exit(3)


def check_out(name: str) -> Path:
    """The file to write; raises `UserError` if it cannot be one."""
    out = Path(name)
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"--out {name}: the name of a file that ends in .npz expected")
    make_folder(out.parent, "--out")
    return out


def find_rows(args: argparse.Namespace) -> tuple[Rows, str]:
    """The images to embed by the name of their row, and what a row is."""
    if args.boxes:
        if args.tracklets:
            raise UserError("--tracklets: folders expected, but --boxes names crops; "
                            "its column track makes tracks of them")
        rows = read_boxes(args.boxes, args.inputs)
        return rows, "tracks" if any("#track=" in name for name in rows) else "boxes"
    if not args.inputs:
        raise UserError("INPUT: no image given; name folders, image files, "
                        "or .txt files that name one a line")
    if args.tracklets:
        return find_tracklets(args.inputs), "tracklets"
    return {path: [path] for path in find_images(args.inputs)}, "images"


def load_network(args: argparse.Namespace) -> tuple[Network, Mapping[str, Any]]:
    """The network as a function, on its device or by onnxruntime, and what its file says of it."""
    if args.resume.endswith(".onnx"):
        from retrieval import onnx_model
        model = onnx_model.load(args.resume)
        if model.facts.modality != args.modality:
            raise UserError(f"--modality {args.modality}: {args.resume} is the network for "
                            f"{model.facts.modality} images; name the other file")
        network = with_mirror(model.features) if args.flip else model.features
        return network, {**vars(model.facts), "img_h": model.facts.height, "img_w": model.facts.width}
    import checkpoint  # with torch, which takes a second to load: mistakes in the arguments are found before
    from devices import choose_device, prepare, use_bf16
    net, facts = checkpoint.load_network(args.resume)
    device = choose_device(args.gpu)
    prepare(device)
    bf16 = use_bf16(device, args.amp, facts["arch"], ImageSpec.from_arguments(facts))
    known = {**facts, "precision": "bf16" if bf16 else "float32", "sha256": sha256(Path(args.resume))}
    return torch_network(net.to(device), args.modality, bf16, args.flip), known


def make_record(args: argparse.Namespace, facts: Mapping[str, Any], kind: str) -> Record:
    """The record of the features; `UserError` for an image size or range that is not the checkpoint's."""
    sizes = []
    for name, usual in (("img_h", 288), ("img_w", 144)):
        given, saved = getattr(args, name), facts.get(name)
        if given and saved and given != saved:
            made = "exported" if args.resume.endswith(".onnx") else "trained"
            raise UserError(f"--{name} {given}: the checkpoint {args.resume} was {made} with --{name} "
                            f"{saved}; leave the flag out")
        sizes.append(given or saved or usual)
    require_range(args.range)
    limits, saved = args.range, facts.get("range")
    if limits and saved and limits != list(saved):
        raise UserError(f"--range {limits[0]} {limits[1]}: the checkpoint {args.resume} was trained with "
                        f"--range {saved[0]} {saved[1]}; leave the flag out")
    limits = limits or saved
    return Record(facts["sha256"], facts["method"], *sizes, args.flip, args.modality, facts["precision"],
                  kind, limits and tuple(limits))


def embed_until_stopped(network: Network, rows: Rows, record: Record, args: argparse.Namespace,
                        unreadable: dict[str, str]) -> tuple[list[Features], int]:
    """Features of the images of all rows, or of those done when a signal came, and its number, 0 for none."""
    images = list(dict.fromkeys(image for images in rows.values() for image in images))
    settings = Extraction(record.spec, args.test_batch, args.workers, silent=False)
    parts: list[Features] = []
    try:
        for part in embed_batches(network, images, record.modality, settings,
                                  None if args.strict else unreadable):
            parts.append(part)
    except KeyboardInterrupt:
        return parts, signal.SIGINT
    except Interrupted as error:
        return parts, error.signum
    return parts, 0


def write(out: Path, old: Gallery | None, features: Features, images: Sequence[str], record: Record,
          float16: bool) -> None:
    """Write the old rows and the new ones and say so; raises `UserError` where there are none at all."""
    if not features.paths:
        if old is None:
            raise UserError(f"--out {out}: not written, no image was read")
        print(f"{out}: {len(old)} {record.rows}, nothing to add")
        return
    dtype = old.bnneck.dtype if old is not None else np.dtype(np.float16 if float16 else np.float32)
    new = Gallery(features.paths, images, *(getattr(features, kind).astype(dtype) for kind in FEATURES),
                  record)
    write_gallery(out, [new] if old is None else [old, new])
    added = "" if old is None else f" added to {len(old)}"
    print(f"{out}: {len(new)} {record.modality} {record.rows}{added}, {dtype} features of "
          f"{new.bnneck.shape[1]} numbers")


if __name__ == "__main__":
    run(main)
