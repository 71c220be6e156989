"""Pictures that show images: rankings, and the evidence for and against pairs, of one model or several.

Every number is a cosine similarity.
"""
from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from datasets.images import read_image
from datasets.types import Images, ImageSpec
from eval_metrics import rank_queries
from utils import UserError

if TYPE_CHECKING:
    from retrieval.evidence import Evidence

COLUMN, DPI = 3.4, 300  # width of a paper's column in inches; dots an inch of PNG files
QUERIES, SHOWN = 7, 10  # of a ranking: queries, and hits of each
MATCH, MISS = ("✓", "#1a7f37", "-"), ("✗", "#c62828", (0, (2.2, 1.2)))  # sign, colour and line
ORANGE, BLUE = "#d55e00", "#0072b2"  # two colours that everybody can tell apart (Okabe and Ito)


@dataclass(frozen=True)
class Searched:
    """A search with what a model makes of its images.

    seen (Q, G) bool: which gallery images exist to each query; feats (Q, D), (G, D): unit features, of the
    kind `feature`; distances (Q, G): what orders the gallery, where it is re-ranked.
    """

    label: str
    query: Images
    gallery: Images
    seen: np.ndarray
    feats: tuple[np.ndarray, np.ndarray]
    feature: str = "bnneck"
    distances: np.ndarray | None = None

    @cached_property
    def similarity(self) -> np.ndarray:
        """Cosine similarities (Q, G)."""
        return self.feats[0] @ self.feats[1].T

    @cached_property
    def order(self) -> np.ndarray:
        """What the gallery is ordered by, (Q, G), smaller first."""
        return np.maximum(1 - self.similarity, 0) if self.distances is None else self.distances

    @cached_property
    def same(self) -> np.ndarray:
        """Which pairs show one person, (Q, G) bool."""
        return self.query.pids[:, None] == self.gallery.pids

    @cached_property
    def first_match(self) -> np.ndarray:
        """Rank, from 1, of each query's first image of the right person, (Q,); 0 where there is none."""
        return rank_queries(self.order, self.query.pids, self.gallery.pids, self.seen).first


def spread_queries(tested: Searched, count: int = QUERIES) -> list[int]:
    """Queries of different persons with a match, evenly from the best found to the worst."""
    ranks, pids = tested.first_match, tested.query.pids
    order = np.argsort(ranks, kind="stable")[(ranks == 0).sum():]
    chosen: dict[int, int] = {}
    for part in np.array_split(order, count):
        query = next((query for query in part[::-1] if pids[query] not in chosen), None)
        if query is not None:
            chosen[pids[query]] = query
    return list(chosen.values())


def choose_pairs(tested: Searched, queries: Sequence[int]) -> list[tuple[str, tuple[str, str]]]:
    """For each query the nearest image of its person and of another one: captions, and two paths each."""
    rows = []
    for query in queries:
        for word, wanted in (("same\nperson", tested.same[query]), ("another\nperson", ~tested.same[query])):
            nearest = np.where(wanted & tested.seen[query], tested.order[query], np.inf)
            if np.isfinite(nearest.min()):
                rows.append((word, (tested.query.paths[query], tested.gallery.paths[nearest.argmin()])))
    return rows


@dataclass(frozen=True)
class Tile:
    """An image (a path) with the caption below it, in one colour with its frame; style: of the frame."""

    path: str
    caption: str
    colour: str = "black"
    style: Any = "-"


def draw_ranking(title: str, models: Sequence[Searched], queries: Sequence[int], spec: ImageSpec,
                 count: int = SHOWN, scale: float = 1.0) -> Figure:
    """Queries with their first gallery images, framed as right or wrong, with camera and similarity.

    Several models have a row each for each query. queries: rows of the search; scale: see `draw_sheet`.
    """
    rows = []
    for query, tested in itertools.product(queries, models):
        images, gallery = tested.query, tested.gallery
        row = [Tile(images.paths[query], f"person {images.pids[query]}, camera {images.camids[query]}\n"
                    f"first match: rank {tested.first_match[query]}")]
        seen = np.flatnonzero(tested.seen[query])
        for index in seen[np.argsort(tested.order[query, seen], kind="stable")[:count]]:
            sign, colour, style = MATCH if tested.same[query, index] else MISS
            caption = f"{sign} camera {gallery.camids[index]}\n{tested.similarity[query, index]:.3f}"
            row.append(Tile(gallery.paths[index], caption, colour, style))
        rows.append(row)
    labels = [tested.label for tested in models] * len(queries) if len(models) > 1 else ()
    heading = f"{title}\nbelow each image: its camera and its cosine similarity to the query"
    return draw_sheet(heading, rows, min(count, len(models[0].gallery)), spec, labels=labels, scale=scale)


def draw_sheet(title: str, rows: Sequence[Sequence[Tile]], count: int, spec: ImageSpec, lenient: bool = False,
               labels: Sequence[str] = (), scale: float = 1.0) -> Figure:
    """Rows of a query and up to `count` hits, framed and captioned; labels: of rows, at their left.

    spec: gives the aspect; lenient: an image that cannot be read is an empty frame, rather than a
    `UserError`; scale: of all lengths, at which five hits at 0.58 fill a paper's column.
    """
    zoom = min(0.72 / spec.width, 1.44 / spec.height)  # lengths are inches, y downwards from the top edge
    tall, wide, column = zoom * spec.height, zoom * spec.width, 0.88
    centres = 0.75 + column * (np.arange(count + 1) + 0.45 * (np.arange(count + 1) > 0))
    across = max(centres[-1] + 0.55, 3 * COLUMN / 2)
    heading = [line for part in title.split("\n") for line in textwrap.wrap(part, round(11 * across))]
    line, top = tall + 0.52, 0.5 + 0.2 * len(heading)
    down = top + line * len(rows)
    figure = Figure(figsize=(scale * across, scale * down), dpi=round(DPI / 2 / scale))
    axes = figure.add_axes((0, 0, 1, 1))
    write = partial(axes.text, ha="center", va="top", linespacing=1.2)
    sizes = {name: max(size * scale, 5.2) for name, size in (("title", 10), ("head", 9), ("caption", 7))}
    write(across / 2, 0.12, "\n".join(heading), fontsize=sizes["title"])
    for number, x in enumerate(centres):
        write(x, top - 0.08, str(number) if number else "query", fontsize=sizes["head"], va="baseline")
    for upper, row, label in zip(top + line * np.arange(len(rows)), rows, labels or [""] * len(rows)):
        write(0.05, upper + tall / 2, textwrap.fill(label, 20), fontsize=sizes["head"], rotation=90,
              ha="left", va="center")
        for centre, tile in zip(centres, row):
            left = centre - wide / 2
            with contextlib.suppress(*[UserError] if lenient else []):
                size = max(1, round(DPI * tall / 2)), max(1, round(DPI * wide / 2))
                axes.imshow(read_image(tile.path, ImageSpec(*size, spec.range)),
                            extent=(left, left + wide, upper + tall, upper))
            axes.add_patch(Rectangle((left, upper), wide, tall, fill=False, edgecolor=tile.colour,
                                     linewidth=2.4 * scale, linestyle=tile.style))
            write(centre, upper + tall + 0.05, tile.caption, color=tile.colour, fontsize=sizes["caption"])
    axes.set(xlim=(0, across), ylim=(down, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def draw_evidence(title: str, rows: Sequence[tuple[str, Sequence[Evidence]]], spec: ImageSpec,
                  labels: Sequence[str] = ("",)) -> Figure:
    """Pairs of images with what speaks for them and against them, a row a pair, two maps a model.

    rows: a caption and the evidence of each model. The colours of a row have one scale; contours at a third
    of it are solid where a place speaks for the pair, dashed where it speaks against it.
    """
    heads = ["query", "found", *["on query", "on found"] * len(labels)]
    size = ImageSpec(DPI, max(1, round(DPI * spec.width / spec.height)), spec.range)
    tall = min(1.2, (COLUMN - 0.6) / len(heads) * spec.height / spec.width)
    height = 1.25 + (tall + 0.16) * len(rows)
    figure = Figure(figsize=(COLUMN, height), dpi=DPI)
    grid = figure.subplots(len(rows), len(heads), squeeze=False, gridspec_kw={
        "left": 0.6 / COLUMN, "right": 0.99, "bottom": 0.5 / height, "top": 1 - 0.75 / height, "wspace": 0.05,
        "hspace": 0.2})
    for line, (caption, found) in zip(grid, rows):
        images = [read_image(path, size) for path in found[0].paths]
        limit = max(np.abs(values).max() for pair in found for values in pair.maps)
        for axes, pixels in zip(line, images):
            axes.imshow(pixels, aspect="auto")
        line[0].text(-0.1, 0.5, caption, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
        for pair, places in zip(found, line[2:].reshape(-1, 2)):
            for axes, pixels, values in zip(places, images, pair.maps):
                show_evidence(axes, pixels, values, limit)
            places[0].set_title(f"{pair.similarity:.3f}", x=1.02, fontsize=6.5, pad=1.5)
    words = [*((axes, 0.5, 0.2, head) for axes, head in zip(grid[0], heads)),
             *((axes, 1.02, 0.34, label) for axes, label in zip(grid[0, 2::2], labels))]
    for axes, x, y, word in words:
        axes.text(x, 1 + y / tall, word, transform=axes.transAxes, ha="center", fontsize=7)
    for axes in grid.flat:
        axes.set_axis_off()
    draw_scale(figure)
    names = " / ".join(dict.fromkeys(pair.name for _, found in rows for pair in found))
    heading = f"{title}; " if title else ""
    heading += f"{names} (solid: for, dashed: against), above it the cosine similarity"
    figure.suptitle(textwrap.fill(heading, 66), fontsize=7, y=0.995, va="top")
    return figure


def draw_scale(figure: Figure) -> None:
    """The colours of evidence as a bar at the foot of a figure."""
    height = figure.get_figheight()
    scale = ScalarMappable(Normalize(-1, 1), LinearSegmentedColormap.from_list("", (ORANGE, "0.8", BLUE)))
    bar = figure.colorbar(scale, cax=figure.add_axes((0.25, 0.3 / height, 0.5, 0.08 / height)),
                          orientation="horizontal", ticks=(-1, 0, 1))
    bar.ax.set_xticklabels(("against the pair", "0", "for it"), fontsize=7)


def show_evidence(axes: Axes, pixels: np.ndarray, values: np.ndarray, limit: float) -> None:
    """An image under its evidence, a map (rows, columns) float32, with contours at a third of the limit."""
    large = np.asarray(Image.fromarray(values).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))
    axes.imshow(overlay(pixels, large, limit), aspect="auto")
    levels = [level for level in (-limit / 3, limit / 3) if values.min() < level < values.max()]
    if levels:
        axes.contour(large, levels, colors="black", linewidths=0.7,
                     linestyles=["dashed" if level < 0 else "solid" for level in levels])


def overlay(pixels: np.ndarray, evidence: np.ndarray, limit: float) -> np.ndarray:
    """A grey image (height, width, 3) uint8 with what speaks for a pair in blue, and against it in orange.

    evidence: (height, width) float32; limit: the evidence that has the full colour. The grey is stretched and
    light, so that colours show on dark images too.
    """
    strength = (evidence / max(limit, 1e-12)).clip(-1, 1)[..., None]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)[..., None]
    low, high = np.percentile(grey, (1, 99))
    grey = 90 + 150 * ((grey - low) / max(high - low, 1)).clip(0, 1)
    colour = np.where(strength > 0, *(np.float32(to_rgb(name)) * 255 for name in (BLUE, ORANGE)))
    opacity = 0.75 * np.abs(strength)
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)
