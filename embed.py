"""Features of crops of one person each for search.py: folders, lists, tracklets, or boxes in larger images.

    python embed.py night/ --modality infrared --resume save_model/..._last.t --out night.npz
    python embed.py day/ --modality visible --resume save_model/..._last.t --out day.npz --append

Exit status 3: some files could not be read; they are named and left out.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import embedding
from datasets.folders import RANGE
from datasets.types import MODALITIES
from embedding import Rows
from features import Extraction, join
from retrieval.embedder import open_embedder
from retrieval.gallery import Gallery, Record, locked, merge, read_gallery, require_same, write_gallery
from command_line import GPU, Parser, add_data_arguments, filled, number, run
from utils import Interrupted, UserError, make_folder, warn

ALIKE = 0.99  # similarity of two features of the same pixels, whatever their precision


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Write the features of crops of one person each to a file for search.py. "
                                "Whole photographs need --boxes, of a detector of your own.")
    parser.add_argument("inputs", nargs="*", metavar="INPUT",
                        help="folders of images (any depth), image files, or .txt files that name one a line")
    parser.add_argument("--modality", type=embedding.modality, choices=MODALITIES, required=True,
                        help="of all these images (also: rgb, ir, nir, thermal)")
    parser.add_argument("--resume", "-r", type=filled, required=True, metavar="PATH",
                        help="checkpoint, or network of export.py")
    parser.add_argument("--out", type=filled, required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument("--append", action="store_true",
                        help="add what is not in that file yet, or has changed")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--tracklets", action="store_true",
                      help="each folder is one tracklet: the mean of its features")
    rows.add_argument("--boxes", type=filled, metavar="FILE.csv",
                      help="crops of larger images: columns path, x, y, w, h and perhaps track")
    parser.add_argument("--strict", action="store_true", help="stop at a file that cannot be read")
    parser.add_argument("--flip", action="store_true", help="add the features of the mirror image")
    parser.add_argument("--float16", action="store_true", help="half the bytes on disk")
    add_data_arguments(parser, of_checkpoint=True)
    parser.add_argument("--range", **RANGE, help="raw values that become black and white in images of more "
                                                 "than 8 bits (default: the checkpoint's)")
    parser.add_argument("--gpu", **{**GPU, "default": None})
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), default="off",
                        help="bfloat16 autocast; auto: where the device has it and the backbone gains by it")
    parser.add_argument("--test-batch", type=number(1), default=64, metavar="N", help="images a step")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Embed from the arguments of the command line."""
    args = build_parser().parse_args(words)
    if not args.out.endswith(".npz") or os.path.isdir(args.out):
        raise UserError(f"--out {args.out}: the name of a file that ends in .npz expected")
    out = make_folder(Path(args.out).parent, "--out") / Path(args.out).name
    rows, kind = find_rows(args)
    embedder = open_embedder(args.resume, args.modality, flip=args.flip, gpu=args.gpu, amp=args.amp,
                             img_h=args.img_h, img_w=args.img_w, range=args.range)
    record = replace(embedder.record, rows=kind, folder=os.getcwd())
    old = read_old(out, record, args.append)
    shown = embedding.digests(rows, args.workers)
    wanted = rows if old is None else choose_rows(old, rows, shown, record, out)
    images = embedding.images_of(wanted)
    embedding.warn_of_shapes(images)
    settings = Extraction(record.spec, args.test_batch, args.workers, silent=False)
    parts, unreadable, stopped = [], {}, 0
    try:
        for part in embedding.embed_batches(embedder.network, images, args.modality, settings,
                                            None if args.strict else unreadable):
            parts.append(part)
    except Interrupted as error:
        stopped = error.signum  # what is done is written
    for error in dict.fromkeys(unreadable.values()):
        warn(f"{error} (left out)")
    features = join(parts)
    seen = {*features.paths, *unreadable}
    finished = {name: wanted[name] for name in wanted if seen.issuperset(wanted[name])}
    new = embedding.as_gallery(features, finished, shown, record, np.float16 if args.float16 else np.float32)
    if len(new) or not stopped:
        write(out, new, args.append)
    if stopped:
        kind = f"new {kind}" if old is not None else kind
        raise Interrupted(stopped, f"stopped with {len(new)} of {len(wanted)} {kind} in {out}; "
                                   "--append goes on")
    if unreadable:
        sys.exit(3)


def find_rows(args: argparse.Namespace) -> tuple[Rows, str]:
    """The images to embed by the name of their row, and what a row is."""
    if args.boxes:
        rows = embedding.read_boxes(args.boxes, args.inputs)
        return rows, "tracks" if any("#track=" in name for name in rows) else "boxes"
    if args.tracklets:
        return embedding.find_tracklets(args.inputs), "tracklets"
    return {path: [path] for path in embedding.find_images(args.inputs)}, "images"


def read_old(out: Path, record: Record, append: bool) -> Gallery | None:
    """The file that grows, if it is there; raises `UserError` where these images do not go into it."""
    if not (append and out.exists()):
        return None
    old = read_gallery(out)
    require_same(record, old.record, f"--append {out}: these images and the file", ("modality", "rows"))
    return old


def choose_rows(old: Gallery, rows: Rows, shown: dict[str, str], record: Record, out: Path) -> Rows:
    """The rows that a file does not hold, or that show something else now, which is said.

    Raises `UserError` for a track that has a name of the file but begins with another box: the tracks of two
    CSV files count from 1.
    """
    known = dict(zip(old.keys(), old.digests()))
    keys = {name: os.path.abspath(os.path.join(record.folder, name)) for name in rows}
    changed = [name for name in rows if known.get(keys[name], shown[name]) not in (shown[name], "")]
    for name in changed:
        if record.rows == "tracks" and known[keys[name]][:16] != shown[name][:16]:
            raise UserError(f"--boxes {name}: another track than that of this name in {out}; write another "
                            "file, or give tracks numbers of their own")
    if changed:
        warn(f"--append {out}: {len(changed)} {record.rows} have changed and are embedded again, "
             f"the first {changed[0]}")
    return {name: images for name, images in rows.items() if known.get(keys[name]) != shown[name]}


def write(out: Path, new: Gallery, append: bool) -> None:
    """Write the rows, after those that the file holds by now where it grows, and say so.

    Raises `UserError` where there are none at all.
    """
    kind = new.record.rows
    with locked(out.parent):
        old = read_old(out, new.record, append)  # again: another process may have written there
        if not len(new):
            if old is None:
                raise UserError(f"--out {out}: not written, no image was read")
            print(f"{out}: {len(old)} {kind}, nothing to add")
            return
        if old is not None:
            require_alike(old, new, out)
        written = new if old is None else merge(old, new)
        write_gallery(out, written)
    if written.bnneck.itemsize > new.bnneck.itemsize:
        warn(f"--float16: no effect, as {out} holds {written.bnneck.dtype}")
    kept = len(written) - len(new)
    again = 0 if old is None else len(old) - kept
    added = "" if old is None else f" ({again} of them again) beside {kept}" if again else f" added to {kept}"
    print(f"{out}: {len(new)} {new.record.modality} {kind}{added}, {written.bnneck.dtype} features of "
          f"{new.bnneck.shape[1]} numbers")


def require_alike(old: Gallery, new: Gallery, out: Path) -> None:
    """Raise `UserError` where a row of an earlier version, which did not note what its rows show, is taken by
    another thing of its name.
    """
    unknown = {key: row for row, (key, digest) in enumerate(zip(old.keys(), old.digests())) if not digest}
    for row, key in enumerate(new.keys()):
        if key in unknown and old.bnneck[unknown[key]].astype(np.float32) @ new.bnneck[row] < ALIKE:
            raise UserError(f"--append {out}: {new.paths[row]} is not what the row of this name shows, which "
                            "an earlier version wrote; write another file")


if __name__ == "__main__":
    run(main)
