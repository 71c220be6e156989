"""Figures of a test: CMC curves, example rankings, and histograms of genuine and impostor distances."""
from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from datasets.images import read_image
from datasets.types import Images, Search
from results import FEATURES
from utils import atomic_path

QUERIES, SHOWN, BINS, DPI = 7, 10, 80, 150
MATCH, MISS = ("✓", "#1a7f37", "-"), ("✗", "#c62828", (0, (2.2, 1.2)))  # told apart by sign, colour and line
ORANGE, BLUE = "#d55e00", "#0072b2"  # two colours that everybody can tell apart (Okabe and Ito)
WORDS = {"pool": "after pooling", "bnneck": "after BNNeck"}


def draw(out: Path, record: dict[str, Any], search: Search, dist_mat: np.ndarray, reranked: bool) -> None:
    """Write `cmc.png`, `ranking.png` and `distances.png` into a folder, each whole or not at all.

    record: the results of all trials; search, dist_mat (Q, G): the first trial's, after BNNeck.
    """
    title = " + ".join([record["protocol"]["name"], *record["extras"]])
    first = f"{title}, trial {search.trial}"
    same, shown = search.query.pids[:, None] == search.gallery.pids, search.seen()
    word = "re-ranked distance" if reranked else "cosine distance"
    figures = {"cmc": draw_cmc(title, record["trials"]),
               "ranking": draw_ranking(first, dist_mat, shown, same, search, *record["image_size"]),
               "distances": draw_distances(first, word, dist_mat, shown, same)}
    for name, figure in figures.items():
        with atomic_path(out / f"{name}.png") as temporary:
            FigureCanvasAgg(figure).print_png(temporary)


def curve_axes(title: str) -> tuple[Figure, Axes]:
    """A figure of one panel for curves."""
    figure = Figure(figsize=(5.6, 3.9), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(textwrap.fill(title, 68), fontsize=9, pad=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def draw_cmc(title: str, trials: list[dict[str, Any]]) -> Figure:
    """CMC curves of both features, in per cent: the mean over trials, with a band of one standard deviation."""
    figure, axes = curve_axes(title)
    lowest = 100.0
    for feature, colour, style, marker in zip(FEATURES, (ORANGE, BLUE), ("--", "-"), ("s", "o")):
        curves = 100 * np.array([trial[feature]["cmc"] for trial in trials])
        measures = {"Rank-1": curves[:, 0], "mAP": 100 * np.array([trial[feature]["mAP"] for trial in trials])}
        numbers = [f"{name} {values.mean():.2f}" + (f" ± {values.std():.2f}" if len(trials) > 1 else "")
                   for name, values in measures.items()]
        mean, std, ranks = curves.mean(0), curves.std(0), np.arange(1, curves.shape[1] + 1)
        axes.fill_between(ranks, (mean - std).clip(0), (mean + std).clip(max=100), color=colour, alpha=0.18, linewidth=0)
        axes.plot(ranks, mean, linestyle=style, color=colour, marker=marker, markersize=3.5, linewidth=1.4, clip_on=False, zorder=3,
                  label=f"{WORDS[feature]}: {', '.join(numbers)}")
        lowest = min(lowest, (mean - std).min())
    axes.set(xlabel="rank", ylabel="matching rate "
                                   "(%)", xlim=(0.5, len(ranks) + 0.5), ylim=(max(0, 10 * (lowest // 10) - 20), 100),
             xticks=[1, *range(5, len(ranks) + 1, 5)])
    several = f"mean and standard deviation of {len(trials)} trials" if len(trials) > 1 else f"trial {trials[0]['trial']}"
    axes.legend(loc="best", fontsize=8, title=several, title_fontsize=8)
    return figure


def first_match(dist_mat: np.ndarray, shown: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Rank, from 1, of the first image of the right person for each query, (Q,) int64; 0 where there is none.

    dist_mat (Q, G); shown, same (Q, G) bool: what the protocol lets a query see, and what shows its person.
    """
    nearest = np.where(shown & same, dist_mat, np.inf).argmin(1)[:, None]
    least = np.take_along_axis(dist_mat, nearest, 1)
    before = (dist_mat < least) | ((dist_mat == least) & (np.arange(dist_mat.shape[1]) < nearest))
    return np.where((shown & same).any(1), (before & shown).sum(1) + 1, 0)


def choose_queries(ranks: np.ndarray, pids: np.ndarray) -> list[int]:
    """Queries of different persons, spread evenly from the best to the worst rank of the first match (0: left
    out).
    """
    order = np.argsort(ranks, kind="stable")[(ranks == 0).sum():]
    chosen: dict[int, int] = {}
    for part in np.array_split(order, QUERIES):
        query = next((query for query in part[::-1] if pids[query] not in chosen), None)
        if query is not None:
            chosen[pids[query]] = query
    return list(chosen.values())


def draw_ranking(title: str, dist_mat: np.ndarray, shown: np.ndarray, same: np.ndarray, search: Search, height: int,
                 width: int) -> Figure:
    """Queries with their first ten gallery images, right and wrong ones framed, camera and distance under
    each.

    height, width: pixels, which give the aspect. Queries without a match are not shown.
    """
    ranks = first_match(dist_mat, shown, same)
    chosen = choose_queries(ranks, search.query.pids)
    heading = textwrap.wrap(title, 105)
    zoom = min(0.72 / width, 1.44 / height)  # all lengths are inches, y downwards from the top edge
    tall, wide = zoom * height, zoom * width
    column, line, top = 0.88, tall + 0.48, 0.5 + 0.2 * len(heading)
    centres = 0.65 + column * (np.arange(SHOWN + 1) + 0.2 * (np.arange(SHOWN + 1) > 0))
    across, down = centres[-1] + 0.55, top + line * len(chosen)
    figure = Figure(figsize=(across, down), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    write = partial(axes.text, ha="center", va="top", linespacing=1.2)

    def place(images: Images, index: int, row: int, number: int, caption: str, colour: str, style: Any) -> None:
        left, upper = centres[number] - wide / 2, top + line * row
        pixels = read_image(images.paths[index], max(1, round(DPI * tall)), max(1, round(DPI * wide)), images.levels)
        axes.imshow(pixels, extent=(left, left + wide, upper + tall, upper))
        axes.add_patch(Rectangle((left, upper), wide, tall, fill=False, edgecolor=colour, linewidth=2.4, linestyle=style))
        write(centres[number], upper + tall + 0.05, caption, color=colour, fontsize=7)

    write(across / 2, 0.12, "\n".join(heading), fontsize=11)
    for number, x in enumerate(centres[:1 + len(search.gallery)]):
        write(x, top - 0.08, str(number) if number else "query", fontsize=9, va="baseline")
    for row, query in enumerate(chosen):
        pid, camera = search.query.pids[query], search.query.camids[query]
        place(search.query, query, row, 0, f"person {pid}, camera {camera}\nfirst match: rank "
                                           f"{ranks[query]}", "black", "-")
        seen = np.flatnonzero(shown[query])
        for number, index in enumerate(seen[np.argsort(dist_mat[query, seen], kind="stable")[:SHOWN]], 1):
            sign, colour, style = MATCH if same[query, index] else MISS
            caption = f"{sign} camera {search.gallery.camids[index]}\n{max(0.0, dist_mat[query, index]):.3f}"
            place(search.gallery, index, row, number, caption, colour, style)
    axes.set(xlim=(0, across), ylim=(down, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def draw_distances(title: str, word: str, dist_mat: np.ndarray, shown: np.ndarray, same: np.ndarray) -> Figure:
    """Histograms (densities) of the distances from queries to the gallery images of the same and of other
    persons.
    """
    figure, axes = curve_axes(title)
    low, high = float(dist_mat.min()), float(dist_mat.max())
    few = np.count_nonzero(shown & same)
    edges = np.linspace(low, max(high, low + 0.1), 1 + (BINS if few > 4000 else BINS // 2 if few > 400 else BINS // 4))
    for name, wanted, colour, style in (("genuine", same, BLUE, "-"), ("impostor", ~same, ORANGE, "--")):
        values = dist_mat[shown & wanted]
        if len(values):
            density, _ = np.histogram(values.clip(low, high), edges, density=True)
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(density, edges, color=colour, linestyle=style, linewidth=1.4,
                        label=f"{name} pairs: {len(values):,}, mean {values.mean(dtype=float):.3f}")
    axes.set(xlabel=word, ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, 1.25 * axes.dataLim.ymax))  # room for the legend
    axes.legend(loc="upper right", fontsize=8)
    return figure
