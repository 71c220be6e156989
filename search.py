"""Search images of a person among others: both sides are files of embed.py.

    python search.py night.npz day.npz --top 10 --out hits/
    python search.py night.npz day.npz --out hits/ --far 1e-3 --calibration results.json
    python search.py night.npz day.npz --out hits/ --resume save_model/..._last.t

Writes hits.csv, hits.png (the first queries) and hits.html, a page that needs no network and no server. The
search is exact: every row of the gallery is compared, and equal similarities keep the order of the gallery.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.images import read_image
from datasets.types import ImageSpec
from results import FEATURES
from retrieval import hits
from retrieval.gallery import Gallery, Hits, camera_of, find_nearest, read_gallery, require_same
from utils import (Parser, UserError, filled, number, make_folder, require_matplotlib, run, sha256,
                   warn)

COMPARABLE = ("checkpoint", "method", "height", "width", "flip", "range", "precision")  # of both sides


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Search the images of one file of embed.py in those of another.")
    parser.add_argument("query", metavar="QUERY.npz", help="file of embed.py: what to search for")
    parser.add_argument("gallery", metavar="GALLERY.npz", help="file of embed.py: where to search")
    parser.add_argument("--out", type=filled, required=True, metavar="DIR",
                        help="folder for hits.csv, hits.png and hits.html")
    parser.add_argument("--top", type=number(1), default=10, metavar="N", help="hits of each query")
    parser.add_argument("--feature", choices=FEATURES, default="bnneck",
                        help="after pooling, or after BNNeck")
    parser.add_argument("--min-similarity", type=cosine, metavar="S",
                        help="leave out hits of a lower cosine similarity")
    parser.add_argument("--exclude-same-camera", action="store_true",
                        help="leave out hits of the query's camera, where names tell cameras")
    parser.add_argument("--far", type=number(1e-12, 1, float), metavar="RATE",
                        help="say yes or no at this false accept rate a pair")
    parser.add_argument("--calibration", type=filled, metavar="results.json",
                        help="record of test.py with the thresholds")
    parser.add_argument("--resume", "-r", type=filled, metavar="PATH",
                        help="checkpoint, to draw evidence maps into hits.html")
    parser.add_argument("--shown", type=number(1), default=20, metavar="N", help="queries in hits.html")
    return parser


def cosine(text: str) -> float:
    """An argparse type: a number from -1 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} found, a number from -1 to 1 expected")
    return value


def main(words: Sequence[str] | None = None) -> None:
    """Search from the arguments of the command line."""
    args = build_parser().parse_args(words)
    if (args.far is None) != (args.calibration is None):
        missing = "--far" if args.far is None else "--calibration"
        raise UserError(f"{missing}: missing; --far and --calibration go together")
    require_matplotlib("--out")
    query, gallery = read_side(args.query), read_side(args.gallery)
    require_same(query.record, gallery.record, COMPARABLE, f"{args.query} and {args.gallery}")
    threshold = cameras = draw = None
    if args.far is not None:
        sides = query.record, gallery.record
        threshold = hits.read_threshold(args.calibration, args.far, args.feature, *sides)
    if args.exclude_same_camera:
        cameras = read_cameras(args.query, query), read_cameras(args.gallery, gallery)
    if args.resume:
        draw = evidence_drawer(args, query, gallery)
    out = make_folder(args.out, "--out")
    found = find(args, query, gallery, cameras or ())
    answers = hits.judge(query, gallery, found, threshold, args.min_similarity)
    about = describe(args, query, gallery, answers, threshold)
    print("\n".join(about))
    title = f"{Path(args.query).name} in {Path(args.gallery).name}"
    hits.write_csv(out / "hits.csv", answers, threshold)
    hits.write_picture(out / "hits.png", answers, f"{title}: {threshold}" if threshold else title,
                       query.record.spec)
    unread = hits.write_page(out / "hits.html", answers[:args.shown], title, about, query.record.spec, draw)
    if unread:
        warn(f"{out / 'hits.html'}: {unread} images could not be read any more; "
             "names begin in the current folder")
    print(f"hits: {out / 'hits.csv'}, {out / 'hits.png'}, {out / 'hits.html'}")


def read_side(path: str) -> Gallery:
    """A file of embed.py that is not empty."""
    gallery = read_gallery(path)
    if not len(gallery):
        raise UserError(f"{path}: no features in it; embed some images")
    return gallery


def read_cameras(path: str, side: Gallery) -> np.ndarray:
    """The camera that each name tells, -1: none; raises `UserError` where no name does."""
    cameras = np.array([camera_of(name) for name in side.paths])
    silent = np.count_nonzero(cameras < 0)
    if silent == len(cameras):
        raise UserError(f"--exclude-same-camera: no name in {path} tells a camera, "
                        "as cam3/ or _c3_ do; leave it out")
    if silent:
        warn(f"--exclude-same-camera: {silent} of {len(cameras)} names in {path} tell no camera, "
             "and lose no hits")
    return cameras


def find(args: argparse.Namespace, query: Gallery, gallery: Gallery, cameras: Sequence[np.ndarray]) -> Hits:
    """The hits of all queries; raises `UserError` for damaged features."""
    feats = [getattr(side, args.feature) for side in (query, gallery)]
    try:
        return find_nearest(*feats, args.top, *cameras, silent=False)
    except ValueError as error:
        raise UserError(f"{args.query}, {args.gallery}: {error}; embed the images again") from None


def describe(args: argparse.Namespace, query: Gallery, gallery: Gallery, answers: list[hits.Answer],
             threshold: hits.Threshold | None) -> list[str]:
    """What was searched, in words, the threshold last."""
    sides = [f"{len(side):,} {side.record.modality} {side.record.rows}" for side in (query, gallery)]
    half = " (float16 on disk)" if np.float16 in (query.bnneck.dtype, gallery.bnneck.dtype) else ""
    lines = [f"{sides[0]} in {sides[1]}, {args.feature} features{half}, method {query.record.method}, "
             f"checkpoint {query.record.checkpoint[:12]}"]
    if args.exclude_same_camera:
        lines.append("hits of the query's own camera are left out")
    if args.min_similarity is not None:
        lines.append(f"hits of a similarity below {args.min_similarity:g} are left out")
    if len(answers) > args.shown:
        lines.append(f"hits.html shows the first {args.shown} queries, hits.csv has all")
    if threshold is not None:
        nobody = sum(answer.verdict == hits.NOBODY for answer in answers)
        expected = float(threshold.far) * len(gallery)
        lines.append(f"no one here for {nobody} of {len(answers)} queries; at this rate, {expected:.2g} "
                     f"false accepts are to be expected of each query in {len(gallery):,} images")
        lines.append(str(threshold))
    return lines


def evidence_drawer(args: argparse.Namespace, query: Gallery, gallery: Gallery) -> hits.Drawer:
    """What draws the evidence on two images; raises `UserError` if the features are another checkpoint's."""
    if sha256(Path(args.resume)) != query.record.checkpoint:
        raise UserError(f"--resume {args.resume}: not the checkpoint of {args.query} (by its SHA-256); name "
                        "that one, or leave it out")
    from checkpoint import load_network  # with torch, which a search by itself does without
    from retrieval.evidence import find_evidence_of_all
    from pictures import overlay
    net, _ = load_network(args.resume)
    modalities = query.record.modality, gallery.record.modality

    def draw(image: str, others: Sequence[str], spec: ImageSpec) -> list[hits.Drawn]:
        drawn = []
        for found in find_evidence_of_all(net, image, others, modalities, query.record.spec, args.feature):
            limit = max(np.abs(values).max() for values in found.maps)
            drawn.append(hits.Drawn(found.name, [
                overlay(read_image(path, spec), values, limit)
                for path, values in zip(found.paths, found.maps)]))
        return drawn

    return draw


if __name__ == "__main__":
    run(main)
