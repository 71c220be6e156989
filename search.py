"""Search persons among others: crops of one person each, as files of embed.py, or as images.

    python search.py night.npz day.npz --top 10 --out hits/
    python search.py night.npz day.npz --out hits/ --far-search 0.05 --calibration results/...
    python search.py photo.png day.npz --modality infrared --resume save_model/..._last.t

Writes hits.csv, hits.png (the first queries) and hits.html, a page that needs no network and no server. The
search is exact: every row of the gallery is compared, and equal similarities keep the order of the gallery.
"""
from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

import embedding
from datasets.files import IMAGE_SUFFIXES
from datasets.images import file_of
from datasets.types import FEATURES, MODALITIES
from features import Extraction, join
from retrieval import hits
from retrieval.embedder import open_embedder
from retrieval.gallery import (Gallery, Record, camera_of, find_nearest, image_finder, read_gallery,
                               require_same)
from command_line import GPU, Parser, filled, number, run
from utils import UserError, make_folder, require_matplotlib, sha256, warn

if TYPE_CHECKING:
    from retrieval.evidence import Evidence

TOLD, LINES = 10, 5  # queries and hits of each that the terminal shows


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Search crops of one person each among those of a file of embed.py.")
    parser.add_argument("query", metavar="QUERY", help="what to search for: a file of embed.py, or an image, "
                        "a folder or a list of images, which --modality and --resume embed")
    parser.add_argument("gallery", metavar="GALLERY.npz", help="file of embed.py: where to search")
    parser.add_argument("--out", type=filled, default="hits", metavar="DIR",
                        help="folder for hits.csv, hits.png and hits.html")
    parser.add_argument("--modality", type=embedding.modality, choices=MODALITIES,
                        help="of images to search for (also: rgb, ir, nir, thermal)")
    parser.add_argument("--resume", "-r", type=filled, metavar="PATH",
                        help="checkpoint that made the features, to embed images, and to draw evidence maps")
    parser.add_argument("--gpu", **{**GPU, "default": None})
    parser.add_argument("--top", type=number(1), default=10, metavar="N", help="hits of each query")
    parser.add_argument("--feature", choices=FEATURES, default="bnneck",
                        help="after pooling, or after BNNeck")
    parser.add_argument("--min-similarity", type=number(-1, 1, float), metavar="S",
                        help="leave out hits of a lower cosine similarity")
    parser.add_argument("--exclude-same-camera", action="store_true",
                        help="leave out hits of the query's camera, where names tell cameras")
    parser.add_argument("--exclude-self", action="store_true",
                        help="leave out the query's own image, by its content")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--far-search", type=number(1e-12, 1 - 1e-12, float), metavar="R",
                      help="say match or no match, with a false answer in one of 1 / R searches")
    rate.add_argument("--far", type=number(1e-12, 1, float), metavar="RATE",
                      help="the same at this false accept rate a pair")
    parser.add_argument("--calibration", type=filled, metavar="results.json",
                        help="record of test.py with the thresholds, or its folder")
    parser.add_argument("--root", type=filled, metavar="DIR",
                        help="folder where the images lie now, if they have moved")
    parser.add_argument("--shown", type=number(1), default=1000, metavar="N", help="queries in hits.html")
    parser.add_argument("--evidence", type=places, default="5", metavar="N|FROM-TO",
                        help="queries with evidence maps, where --resume names the checkpoint: the first N, "
                        "or 101-150 for the third page")
    return parser


def places(text: str) -> slice:
    """An argparse type: the first N, or those FROM one number TO another, counted from 1."""
    match = re.fullmatch(r"(?:([1-9]\d*)-)?(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} found; a number as 5, or numbers as 101-150, expected")
    return slice(int(match[1] or 1) - 1, int(match[2]))


def main(words: Sequence[str] | None = None) -> None:
    """Search from the arguments of the command line."""
    args = build_parser().parse_args(words)
    images = os.path.isdir(args.query) or args.query.lower().endswith((".txt", *IMAGE_SUFFIXES))
    require_flags(args, images)
    require_matplotlib("--out")
    query = None if images else read_gallery(args.query)
    gallery = read_gallery(args.gallery)
    query = query or embed_query(args, gallery.record)
    require_same(query.record, gallery.record, f"{args.query} and {args.gallery}")
    threshold = None
    if args.calibration:
        flag, rate = ("--far-search", args.far_search) if args.far_search else ("--far", args.far)
        threshold = hits.read_threshold(args.calibration, flag, rate, args.feature, query.record,
                                        gallery.record, len(gallery))
        print("\n".join(threshold.expectations()))
    if args.resume and not images:
        named = replace(query.record, checkpoint=sha256(Path(args.resume)))
        require_same(named, query.record, f"--resume {args.resume} and {args.query}")
    found = find_nearest(getattr(query, args.feature), getattr(gallery, args.feature), args.top,
                         find_excluded(args, query, gallery), silent=False)
    out = make_folder(args.out, "--out")
    answers = hits.judge(query, gallery, found, threshold, args.min_similarity,
                         [image_finder(side, args.root) for side in (query, gallery)])
    about = describe(args, query, gallery, answers, threshold)
    print("\n".join(about + tell(answers)))
    write(args, out, answers, query.record, gallery.record, about, threshold)


def require_flags(args: argparse.Namespace, images: bool) -> None:
    """Raise `UserError` where a flag is missing that another argument asks for; images: the query is some."""
    rate = args.far_search or args.far
    for flag, value, asked, why in (
            ("--calibration", args.calibration, rate, "a rate and its --calibration go together"),
            ("--far-search or --far", rate, args.calibration, "a rate and its --calibration go together"),
            ("--modality", args.modality, images, f"say of which the images {args.query} are"),
            ("--resume", args.resume, images, f"to embed {args.query}, name the gallery's checkpoint")):
        if asked and not value:
            raise UserError(f"{flag}: missing; {why}")


def embed_query(args: argparse.Namespace, made: Record) -> Gallery:
    """Images, embedded as the gallery was."""
    rows = {path: [path] for path in embedding.find_images([args.query])}
    embedder = open_embedder(args.resume, args.modality, flip=made.flip, gpu=args.gpu, img_h=made.height,
                             img_w=made.width, range=made.range,
                             amp="bf16" if made.precision == "bf16" else "off")
    embedding.warn_of_shapes(list(rows))
    found = join(list(embedding.embed_batches(embedder.network, list(rows), args.modality,
                                              Extraction(embedder.record.spec, silent=len(rows) < TOLD))))
    return embedding.as_gallery(found, rows, embedding.digests(rows),
                                replace(embedder.record, folder=os.getcwd()))


def find_excluded(args: argparse.Namespace, query: Gallery,
                  gallery: Gallery) -> list[tuple[np.ndarray, np.ndarray]]:
    """Numbers of the rows of both sides, -1 for none, of which a query does not see its own: for each flag.

    Raises `UserError` where no row of a side tells what is to be left out.
    """
    excluded = []
    for flag, asked, none, labels_of, what in (
            ("--exclude-same-camera", args.exclude_same_camera, -1,
             lambda side: map(camera_of, side.paths), "camera (as cam3/ or _c3_ in a name do)"),
            ("--exclude-self", args.exclude_self, "", Gallery.digests,
             "content (files of earlier versions do not)")):
        if not asked:
            continue
        known = {none: -1}
        numbers = [np.array([known.setdefault(label, len(known)) for label in labels_of(side)])
                   for side in (query, gallery)]
        for path, each in zip((args.query, args.gallery), numbers):
            silent = np.count_nonzero(each < 0)
            if silent == len(each):
                raise UserError(f"{flag}: no row of {path} tells its {what}; leave it out, or embed anew")
            if silent:
                warn(f"{flag}: {silent} of {len(each)} rows of {path} tell no {what} and lose no hits")
        excluded.append(tuple(numbers))
    return excluded


def describe(args: argparse.Namespace, query: Gallery, gallery: Gallery, answers: Sequence[hits.Answer],
             threshold: hits.Threshold | None) -> list[str]:
    """What was searched, and what came of it, in words."""
    sides = [f"{len(side):,} {side.record.modality} {side.record.rows}" for side in (query, gallery)]
    half = " (float16 on disk)" if np.float16 in (query.bnneck.dtype, gallery.bnneck.dtype) else ""
    lines = [f"{sides[0]} in {sides[1]}, {args.feature} features{half}, method {query.record.method}, "
             f"checkpoint {query.record.checkpoint[:12]}"]
    lines += [f"left out: {what}" for what, asked in (
        ("hits of the query's own camera", args.exclude_same_camera),
        ("the query's own image", args.exclude_self),
        (f"hits of a similarity below {args.min_similarity}", args.min_similarity is not None)) if asked]
    if len(answers) > args.shown:
        lines.append(f"hits.html shows the first {args.shown} queries, hits.csv has all")
    if threshold is not None:
        counts = Counter(answer.verdict for answer in answers)
        lines.append(f"{threshold.word} for {counts[threshold.word]} of {len(answers)} queries, no match for "
                     f"{counts[hits.NO_MATCH]}")
    return lines


def tell(answers: Sequence[hits.Answer]) -> list[str]:
    """The first hits of each query, in words, where there are few queries."""
    lines = []
    for answer in answers if len(answers) <= TOLD else ():
        lines.append(answer.name)
        lines += [f"  {rank}  {hit.similarity:.3f}  {hit.verdict and f'{hit.verdict:<9}  '}{hit.name}"
                  for rank, hit in enumerate(answer.hits[:LINES], 1)] or ["  no hit"]
    return lines


def write(args: argparse.Namespace, out: Path, answers: Sequence[hits.Answer], query: Record, gallery: Record,
          about: Sequence[str], threshold: hits.Threshold | None) -> None:
    """Write the three files; warns of images that have gone."""
    title = f"{Path(args.query).name} in {Path(args.gallery).name}"
    hits.write_csv(out / "hits.csv", answers, threshold)
    hits.write_picture(out / "hits.png", answers, f"{title}: {threshold}" if threshold else title, query.spec)
    said = [*threshold.expectations(), *about] if threshold else about
    unread = hits.write_page(out / "hits.html", answers[:args.shown], title, said, query.spec,
                             find_evidence(args, answers, query, gallery))
    if unread:
        warn(f"{out / 'hits.html'}: {unread} images could not be read any more; "
             "--root names the folder where they lie now")
    print(f"hits: {out / 'hits.csv'}, {out / 'hits.png'}, {out / 'hits.html'}")


def find_evidence(args: argparse.Namespace, answers: Sequence[hits.Answer], query: Record,
                  gallery: Record) -> dict[tuple[str, str], Evidence]:
    """The evidence of the chosen queries' pairs, of images that are there, where a checkpoint is named."""
    if not args.resume or args.resume.endswith(".onnx"):
        return {}
    pairs = [(answer.image, hit.image) for answer in answers[args.evidence] for hit in answer.hits
             if os.path.isfile(file_of(answer.image)) and os.path.isfile(file_of(hit.image))]
    from checkpoint import load_network  # with torch, which a search by itself does without
    from devices import choose_device, prepare, use_bf16
    from retrieval.evidence import find_all
    device = choose_device(args.gpu or "0")
    prepare(device)
    net, facts = load_network(args.resume)
    found = find_all(net.to(device), pairs, (query.modality, gallery.modality), query.spec, args.feature,
                     use_bf16(device, "auto", facts["arch"], query.spec))
    return dict(zip(pairs, tqdm(found, "evidence", len(pairs), unit="pair", leave=False, disable=None)))


if __name__ == "__main__":
    run(main)
