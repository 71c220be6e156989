"""What a search found: verdicts, hits.csv, hits.png, and hits.html, a page that needs no network."""
from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from datasets.images import by_file, in_order, read_parts
from datasets.types import DIRECTIONS, ImageSpec
from retrieval.gallery import Gallery, Hits, Record, require_same
from retrieval.verification import at_rate
from utils import UserError, as_user_error, atomic_path, one_line

if TYPE_CHECKING:
    from retrieval.evidence import Evidence

PAGE = Path(__file__).resolve().with_name("hits.html")
HEIGHTS, ROOM = (192, 128, 96, 72), 12e6  # of thumbnails in pixels; of all of them in the page, bytes
WORKERS = 4
CERTAIN = 0.1  # false accepts of a query: where there are more, what is accepted is a candidate
MATCH, CANDIDATE, NO_MATCH = "match", "candidate", "no match"


@dataclass(frozen=True)
class Threshold:
    """A threshold of the cosine similarity that test.py calibrated, for a gallery of so many rows.

    rate, true_accept_rate: of pairs of other persons, and of one, that lie above it; calibration: in words.
    """

    value: float
    rate: float
    true_accept_rate: float
    calibration: str
    gallery: int

    @property
    def word(self) -> str:
        """What a hit above the threshold is."""
        return MATCH if self.rate * self.gallery <= CERTAIN else CANDIDATE

    def __str__(self) -> str:
        return (f"threshold {self.value:.4f} for a false accept rate of {self.rate:.3g} a pair, "
                f"calibrated on {self.calibration}")

    def expectations(self) -> list[str]:
        """What to expect of the answers, and the threshold, in words."""
        expected = self.rate * self.gallery
        searches = 100 * (1 - (1 - self.rate) ** self.gallery)
        lines = [f"expect {expected:.2g} false accepts a query ({self.rate:.3g} of {self.gallery:,} pairs), "
                 f"a false answer in at most {searches:.2g} of 100 searches; misses about "
                 f"{100 * (1 - self.true_accept_rate):.0f} of 100 true pairs"]
        if self.word == CANDIDATE:
            lines.append(f"more than {CERTAIN:g} false accepts a query: what lies above the threshold is a "
                         "candidate, not a match; --far-search 0.05 asks for one false answer in 20 searches")
        return [*lines, str(self)]


@dataclass(frozen=True)
class Hit:
    """A gallery image that a query found: its name, the file that shows it, and what is said of the pair."""

    name: str
    image: str
    similarity: float
    verdict: str


@dataclass(frozen=True)
class Answer:
    """A query, its hits from the most similar on, and the verdict of the first ("": no threshold)."""

    name: str
    image: str
    verdict: str
    hits: tuple[Hit, ...]


# --------------------------------------------------------------------------------------------------- verdicts
def read_threshold(path: str, flag: str, value: float, feature: str, query: Record, gallery: Record,
                   size: int) -> Threshold:
    """The threshold for a gallery of some size, from a record of test.py.

    flag: `--far`, whose value is a false accept rate of pairs, or `--far-search`, of whole searches: one
    false answer in 1 / R of them is a rate of 1 - (1 - R)^(1 / G) a pair in a gallery of G rows. Raises
    `UserError` where the record has no threshold for it, or does not fit the features.
    """
    sides = query.modality, gallery.modality
    direction = next((name for name, modalities in DIRECTIONS.items() if modalities == sides), None)
    if direction is None:
        raise UserError(f"{flag} {value:g}: {query.modality} images in {gallery.modality} ones searched, but "
                        "test.py calibrates between the modalities; leave it out, and give --min-similarity")
    path = os.path.join(path, "results.json") if os.path.isdir(path) else path
    rate = 1 - (1 - value) ** (1 / size) if flag == "--far-search" else value
    with as_user_error(f"--calibration {path}: not a results.json of test.py with thresholds of {feature}",
                       "test the checkpoint again, without --feature"):
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        tested = as_tested(query, record)
        known = {float(rate): (float(found["threshold"]), float(found["true_accept_rate"]))
                 for rate, found in record["thresholds"][feature][direction].items()}
        curve, calibration = record.get("roc", {}).get(feature), one_line(record["calibration"])
        if rate not in known and curve and rate >= min(curve["false_accept_rates"]):
            known[rate] = at_rate(curve, rate)
    require_same(tested, query, f"--calibration {path} and the features")
    if rate not in known:
        wanted = f" asks for {rate:.2g} a pair in {size:,} images, but" if flag == "--far-search" else ""
        told = (f"{curve['impostor_pairs']:,} impostor pairs, which tell rates from "
                f"{min(curve['false_accept_rates']):.2g} on" if curve else
                f"rates {', '.join(f'{each:g}' for each in known) or 'none'}")
        raise UserError(f"{flag} {value:g}:{wanted} {path} has no threshold for it ({feature}, {direction}), "
                        f"only for {told}; give one of those, or calibrate on more pairs")
    return Threshold(known[rate][0], rate, known[rate][1], calibration, size)


def as_tested(features: Record, record: Mapping[str, Any]) -> Record:
    """The record of some features, but with what a record of test.py says of how its own were made."""
    extras, (height, width) = record["extras"], record["image_size"]
    return replace(features, checkpoint=", ".join(record["checkpoint"]["sha256"]), height=height, width=width,
                   flip="flip" in extras, range=record.get("range") and tuple(record["range"]),
                   precision="bf16" if "bfloat16" in extras else "float32")


def judge(query: Gallery, gallery: Gallery, found: Hits, threshold: Threshold | None,
          min_similarity: float | None, finders: Sequence[Callable[[str], str]] = (str, str)) -> list[Answer]:
    """Name what was found, and say of each hit and each query what the threshold says.

    finders: from the image of a row of either side to its file. Hits below `min_similarity` are left out; a
    query without hits has no match.
    """
    answers, lowest = [], -np.inf if min_similarity is None else min_similarity
    for name, image, rows, similarities in zip(query.paths, query.images, found.rows, found.similarities):
        pairs = [(row, float(similarity)) for row, similarity in zip(rows, similarities)
                 if row >= 0 and similarity >= lowest]
        hits = tuple(Hit(str(gallery.paths[row]), finders[1](str(gallery.images[row])), similarity,
                         "" if threshold is None else
                         threshold.word if similarity > threshold.value else NO_MATCH)
                     for row, similarity in pairs)
        answers.append(Answer(str(name), finders[0](str(image)), hits[0].verdict if hits else NO_MATCH, hits))
    return answers


# ------------------------------------------------------------------------------------------------------ files
def write_csv(path: Path, answers: Sequence[Answer], threshold: Threshold | None) -> None:
    """Write the hits, a line each, whole or not at all; its head says the threshold."""
    head = ["query", "rank", "hit", "similarity", "verdict"] + ([str(threshold)] if threshold else [])
    with atomic_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for answer in answers:
                lines = [[rank, hit.name, f"{hit.similarity:.6f}", hit.verdict]
                         for rank, hit in enumerate(answer.hits, 1)]
                writer.writerows([answer.name, *line] for line in lines or [["", "", "", answer.verdict]])


def write_picture(path: Path, answers: Sequence[Answer], title: str, spec: ImageSpec) -> None:
    """Draw the first queries with their first ten hits as test.py draws them, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # it takes a second to load

    import pictures
    looks = {MATCH: pictures.MATCH, CANDIDATE: ("?", "black", ":"), NO_MATCH: pictures.MISS,
             "": ("", "black", "-")}
    rows = []
    for answer in answers[:pictures.QUERIES]:
        row = [pictures.Tile(answer.image, f"{shorten(answer.name)}\n{answer.verdict}")]
        for hit in answer.hits[:pictures.SHOWN]:
            sign, colour, style = looks[hit.verdict]
            row.append(pictures.Tile(hit.image, f"{sign} {hit.similarity:.3f}\n{shorten(hit.name)}", colour,
                                    style))
        rows.append(row)
    figure = pictures.draw_sheet(title, rows, max(map(len, rows)) - 1, spec, lenient=True)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def shorten(name: str, length: int = 14) -> str:
    """The end of a name, for a caption; dollar signs would be mathematics to Matplotlib."""
    name = one_line(name)
    return (name if len(name) <= length else "…" + name[1 - length:]).replace("$", r"\$")


# ------------------------------------------------------------------------------------------------------- page
def write_page(path: Path, answers: Sequence[Answer], title: str, about: Sequence[str], spec: ImageSpec,
               evidence: Mapping[tuple[str, str], Evidence]) -> int:
    """Write the page, whole or not at all; returns how many images were not read, which are empty frames.

    about: lines below the title; evidence: of pairs of files, as far as it was looked for.
    """
    images = list(dict.fromkeys(each.image for answer in answers for each in (answer, *answer.hits)))
    places = {image: place for place, image in enumerate(images)}
    shown = thumbnails(images, spec)
    first = next(iter(evidence.values()), None)
    content = {
        "images": shown, "queries": [
            [one_line(answer.name), places[answer.image], answer.verdict,
             [[one_line(hit.name), places[hit.image], round(hit.similarity, 4), hit.verdict,
               *map(packed, filter(None, [evidence.get((answer.image, hit.image))]))] for hit in answer.hits]]
            for answer in answers],
        "evidence": first and {"name": first.name, "shape": first.maps[0].shape}}
    page = PAGE.read_text(encoding="utf-8")
    parts = {"title": escape(title), "about": "".join(f"<p>{escape(line)}</p>" for line in about),
             "content": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")}
    for kind in ("style", "script"):  # the page may apply and run these, by their hashes, and nothing else
        inner = re.search(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)[1]
        parts[f"{kind}_hash"] = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return shown.count("")


def thumbnails(images: Sequence[str], spec: ImageSpec) -> list[str]:
    """Images as WebP in base64, in their own aspect, as large as the page has room for; empty for those that
    cannot be read.
    """
    sample = images[::-(-len(images) // 40)]
    for height in HEIGHTS:
        if sum(map(len, encode(sample, spec, height))) * len(images) <= ROOM * len(sample):
            break
    return encode(images, spec, height)


def encode(images: Sequence[str], spec: ImageSpec, height: int) -> list[str]:
    """Images as WebP of up to this height in base64; empty for those that cannot be read."""
    def finish(image: Image.Image) -> str:
        image.thumbnail((2 * height, height))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=75)
        return base64.b64encode(buffer.getvalue()).decode()

    files = by_file(images)
    found = in_order(lambda parts: read_parts(parts, spec.range, finish), files, WORKERS, 8 * WORKERS)
    made = dict(zip(itertools.chain.from_iterable(files), itertools.chain.from_iterable(found)))
    return ["" if isinstance(made[image], UserError) else made[image] for image in images]


def packed(found: Evidence) -> str:
    """Both maps of a pair, a byte a place, in base64: 0 for what speaks most against it, 254 for it."""
    maps = np.stack(found.maps)
    values = np.rint(127 * maps / max(np.abs(maps).max(), 1e-12)) + 127
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()
