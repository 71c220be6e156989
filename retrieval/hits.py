"""What a search found: verdicts, hits.csv, hits.png, and hits.html, a page that needs no network."""
from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.images import read_image
from datasets.types import DIRECTIONS, ImageSpec
from retrieval.gallery import Gallery, Hits, Record
from utils import UserError, atomic_path, one_line

PAGE = Path(__file__).resolve().with_name("hits.html")
THUMBNAIL = 192  # pixels, height
ABOVE, BELOW, NOBODY = "above", "below", "no one here"
SIGNS = {ABOVE: "✓", BELOW: "✗", NOBODY: "○", "": ""}


@dataclass(frozen=True)
class Threshold:
    """A threshold of the cosine similarity that test.py wrote, with what it was calibrated on, in words."""

    value: float
    far: str
    calibration: str

    def __str__(self) -> str:
        return (f"threshold {self.value:.4f} for a false accept rate of {self.far} a pair, calibrated on "
                f"{self.calibration}")


@dataclass(frozen=True)
class Hit:
    """A gallery image that a query found: its name, an image that shows it, and what is said of the pair."""

    name: str
    image: str
    similarity: float
    verdict: str


@dataclass(frozen=True)
class Answer:
    """A query, its hits from the most similar on, and whether its person is here ("": no threshold)."""

    name: str
    image: str
    verdict: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Drawn:
    """The evidence on the images of a query and a hit, (height, width, 3) uint8, and what it is, in words."""

    name: str
    pictures: Sequence[np.ndarray]


# of a query's image, the images of its hits, and the form of the pictures
Drawer = Callable[[str, Sequence[str], ImageSpec], list[Drawn]]


# --------------------------------------------------------------------------------------------------- verdicts
def read_threshold(path: str, far: float, feature: str, query: Record, gallery: Record) -> Threshold:
    """The threshold at a false accept rate; raises `UserError` where a record of test.py has none for it."""
    sides = query.modality, gallery.modality
    direction = next((name for name, modalities in DIRECTIONS.items() if modalities == sides), None)
    if direction is None:
        raise UserError(f"--far {far:g}: {query.modality} images in {gallery.modality} ones searched, but "
                        "test.py calibrates between the modalities; leave it out, and give --min-similarity")
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        trained, size, extras = record["checkpoint"]["sha256"], record["image_size"], record["extras"]
        known = {float(rate): values for rate, values in record["thresholds"][feature][direction].items()}
        calibration = one_line(record["calibration"])
        value = float(known[far]["threshold"]) if far in known else None
    except FileNotFoundError:
        raise UserError(f"--calibration {path}: no such file; name a results.json that test.py "
                        "wrote") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {one_line(error)[:100]}"
        raise UserError(f"--calibration {path}: not a results.json of test.py with thresholds of {feature} "
                        f"({what}); test the checkpoint again, without --feature") from None
    if value is None:
        rates = ", ".join(f"{rate:g}" for rate in known) or "none"
        raise UserError(f"--far {far:g}: {path} has no threshold for it ({feature}, {direction}), but for "
                        f"{rates}; give one of those, or calibrate on more pairs")
    made = {"checkpoint": trained == [query.checkpoint], "image_size": size == [query.height, query.width],
            "flip": ("flip" in extras) == query.flip}
    for name, same in made.items():
        if not same:
            raise UserError(f"--calibration {path}: its {name} is not that of the features; test their "
                            "checkpoint in the same way")
    return Threshold(value, f"{far:g}", calibration)


def judge(query: Gallery, gallery: Gallery, found: Hits, threshold: Threshold | None,
          min_similarity: float | None) -> list[Answer]:
    """Name what was found, and say of each hit and each query what the threshold says.

    A query of which no hit lies above has "no one here" for itself and its hits; hits below `min_similarity`
    are left out.
    """
    answers, lowest = [], -np.inf if min_similarity is None else min_similarity
    for name, image, rows, similarities in zip(query.paths, query.images, found.rows, found.similarities):
        pairs = [(row, float(similarity)) for row, similarity in zip(rows, similarities) if row >= 0]
        verdicts = ["" if threshold is None else ABOVE if similarity > threshold.value else BELOW
                    for _, similarity in pairs]
        pairs = [(row, similarity) for row, similarity in pairs if similarity >= lowest]
        if not pairs or threshold is not None and ABOVE not in verdicts:
            verdicts = [NOBODY] * max(1, len(verdicts))
        hits = [Hit(str(gallery.paths[row]), str(gallery.images[row]), similarity, verdict)
                for (row, similarity), verdict in zip(pairs, verdicts)]
        answers.append(Answer(str(name), str(image), verdicts[0], tuple(hits)))
    return answers


# ------------------------------------------------------------------------------------------------------ files
def write_csv(path: Path, answers: Sequence[Answer], threshold: Threshold | None) -> None:
    """Write a line for each hit, whole or not at all; one without a hit for a query that has none."""
    head = ["query", "rank", "hit", "similarity", "verdict"] + (["calibration"] if threshold else [])
    with atomic_path(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for answer in answers:
                lines = [[rank, hit.name, f"{hit.similarity:.6f}", hit.verdict]
                         for rank, hit in enumerate(answer.hits, 1)]
                for line in lines or [["", "", "", answer.verdict]]:
                    writer.writerow([answer.name, *line] + ([str(threshold)] if threshold else []))


def write_picture(path: Path, answers: Sequence[Answer], title: str, spec: ImageSpec) -> None:
    """Draw the first queries with their first ten hits as test.py draws them, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # it takes a second to load

    import pictures
    looks = {ABOVE: pictures.MATCH, BELOW: pictures.MISS, NOBODY: ("○", "0.35", ":"), "": ("", "black", "-")}
    rows = []
    for answer in answers[:pictures.QUERIES]:
        said = NOBODY if answer.verdict == NOBODY else ""
        row = [pictures.Tile(answer.image, f"{shorten(answer.name)}\n{said}")]
        for hit in answer.hits[:pictures.SHOWN]:
            sign, colour, style = looks[hit.verdict]
            caption = f"{sign} {hit.similarity:.3f}\n{shorten(hit.name)}"
            row.append(pictures.Tile(hit.image, caption, colour, style))
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
               draw: Drawer | None) -> int:
    """Write the page, whole or not at all; returns how many images were not read, which are empty frames.

    about: lines below the title; spec: gives the aspect, and the range; draw: what draws evidence.
    """
    small = replace(spec, height=THUMBNAIL, width=round(THUMBNAIL * spec.width / spec.height))
    thumbnails: dict[str, str] = {}
    for image in {each.image for answer in answers for each in (answer, *answer.hits)}:
        try:
            thumbnails[image] = data_uri(read_image(image, small))
        except UserError:
            thumbnails[image] = ""
    bar = tqdm(answers, "evidence", unit="query", leave=False, disable=None if draw else True)
    parts = {"title": escape(title), "about": "".join(f"<p>{escape(line)}</p>" for line in about),
             "verdicts": "" if any(answer.verdict for answer in answers) else "hidden",
             "rows": "\n".join(section(answer, thumbnails, small, draw) for answer in bar)}
    page = PAGE.read_text(encoding="utf-8").replace("{{ratio}}", f"{spec.width} / {spec.height}")
    for kind in ("style", "script"):  # the page may apply and run these, by their hashes, and nothing else
        inner = re.search(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)[1]
        parts[f"{kind}_hash"] = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return sum(not uri for uri in thumbnails.values())


def section(answer: Answer, thumbnails: dict[str, str], spec: ImageSpec, draw: Drawer | None) -> str:
    """A query and its hits in HTML."""
    items, drawn = [], {}
    others = [hit.image for hit in answer.hits if thumbnails[hit.image]]
    if draw is not None and thumbnails[answer.image] and others:
        drawn = dict(zip(others, draw(answer.image, others, spec)))
    for rank, hit in enumerate(answer.hits, 1):
        evidence = ""
        if found := drawn.get(hit.image):
            maps = " ".join(map(data_uri, found.pictures))
            evidence = f' data-evidence="{escape(found.name)}" data-maps="{maps}"'
        items.append(
            f'<li class="hit" data-verdict="{hit.verdict}" data-path="{attribute(hit.name)}">'
            f'<button type="button"{evidence}>{picture(thumbnails[hit.image])}'
            f'<span class="rank">{rank} · <b>{hit.similarity:.3f}</b></span>'
            f'{verdict("" if hit.verdict == NOBODY else hit.verdict)}{label(hit.name)}</button></li>')
    return (
        f'<section data-verdict="{answer.verdict}" data-path="{attribute(answer.name)}">'
        f'<div class="query">{picture(thumbnails[answer.image])}<span>query</span>'
        f'{verdict(NOBODY if answer.verdict == NOBODY else "")}{label(answer.name)}</div>'
        f'<ol>{"".join(items)}</ol></section>')


def verdict(word: str) -> str:
    """A verdict in HTML: told by sign and word, not by colour alone."""
    return f'<span class="verdict" data-is="{word}">{SIGNS[word]} {word}</span>' if word else ""


def picture(uri: str) -> str:
    """An image in HTML, or an empty frame."""
    return f'<img src="{uri}" alt="">' if uri else '<span class="missing">no image</span>'


def label(name: str) -> str:
    """A name in HTML, with places where its line may break."""
    text = re.sub("([/_])", r"\1<wbr>", escape(one_line(name)))
    return f'<span class="path">{text}</span>'


def attribute(name: str) -> str:
    """A name within an attribute of HTML."""
    return escape(one_line(name))


def data_uri(pixels: np.ndarray) -> str:
    """An image (height, width, 3) uint8 as a JPEG within a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
