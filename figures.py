"""Figures of a test: CMC and ROC curves, rankings, histograms of distances, evidence, an embedding."""
from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from PIL import Image

from datasets.images import read_image
from datasets.types import MODALITIES, Images, ImageSpec, Search
from results import Record
from retrieval.verification import Pairs
from utils import UserError, atomic_path, one_line

if TYPE_CHECKING:
    from retrieval.evidence import Evidence

QUERIES, SHOWN, BINS, DPI = 7, 10, 80, 150
EMBEDDED, EACH = 20, 12  # persons, and images of each in each modality
MATCH, MISS = ("✓", "#1a7f37", "-"), ("✗", "#c62828", (0, (2.2, 1.2)))  # sign, colour and line
ORANGE, BLUE = "#d55e00", "#0072b2"  # two colours that everybody can tell apart (Okabe and Ito)
WORDS = {"pool": "after pooling", "bnneck": "after BNNeck", "sum": "sum of both cosines"}


def draw(out: Path, record: Record, search: Search, dist_mat: np.ndarray, reranked: bool) -> None:
    """Write `cmc.png`, `ranking.png` and `distances.png` into a folder, each whole or not at all.

    record: the results of all trials; search, dist_mat (Q, G): the first trial's, with the last feature.
    """
    title = " + ".join([record.protocol.name, *record.extras])
    first = f"{title}, trial {search.trial}"
    same, shown = search.query.pids[:, None] == search.gallery.pids, search.seen()
    word = "re-ranked distance" if reranked else "cosine distance"
    figures = {"cmc": draw_cmc(title, record),
               "ranking": draw_ranking(first, dist_mat, shown, same, search,
                                       record.spec),
               "distances": draw_distances(first, word, dist_mat, shown, same)}
    save(out, figures)


def save(out: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures by name as PNG files into a folder, each whole or not at all."""
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


def draw_cmc(title: str, record: Record) -> Figure:
    """CMC curves of the features, in per cent: the mean over trials, in a band of a standard deviation."""
    figure, axes = curve_axes(title)
    lowest = 100.0
    for feature, colour, style, marker in zip(record.features, (ORANGE, BLUE), ("--", "-"), ("s", "o")):
        curves = 100 * record.cmc(feature)
        measures = {"Rank-1": curves[:, 0], "mAP": 100 * record.values(feature, "mAP")}
        numbers = [f"{name} {values.mean():.2f}" + (f" ± {values.std():.2f}" if np.ptp(values) else "")
                   for name, values in measures.items()]
        mean, std, ranks = curves.mean(0), curves.std(0), np.arange(1, curves.shape[1] + 1)
        axes.fill_between(ranks, (mean - std).clip(0), (mean + std).clip(max=100), color=colour, alpha=0.18,
                          linewidth=0)
        axes.plot(ranks, mean, linestyle=style, color=colour, marker=marker, markersize=3.5, linewidth=1.4,
                  clip_on=False, zorder=3, label=f"{WORDS[feature]}: {', '.join(numbers)}")
        lowest = min(lowest, (mean - std).min())
    axes.set(xlabel="rank", ylabel="matching rate (%)", xlim=(0.5, len(ranks) + 0.5),
             ylim=(max(0, 10 * (lowest // 10) - 20), 100), xticks=[1, *range(5, len(ranks) + 1, 5)])
    heading = (f"mean and standard deviation of {len(record.trials)} trials" if len(record.trials) > 1
               else f"trial {record.trials[0].number}")
    axes.legend(loc="best", fontsize=8, title=heading, title_fontsize=8)
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
    """Queries of different persons, evenly from best to worst rank of the first match (0: left out)."""
    order = np.argsort(ranks, kind="stable")[(ranks == 0).sum():]
    chosen: dict[int, int] = {}
    for part in np.array_split(order, QUERIES):
        query = next((query for query in part[::-1] if pids[query] not in chosen), None)
        if query is not None:
            chosen[pids[query]] = query
    return list(chosen.values())


def choose_pairs(search: Search, dist_mat: np.ndarray) -> list[list[tuple[str, tuple[str, str]]]]:
    """For some queries, from the best to the worst, the nearest image of their person and of another one.

    Each a caption and two paths.
    """
    same, shown = search.query.pids[:, None] == search.gallery.pids, search.seen()
    chosen = choose_queries(first_match(dist_mat, shown, same), search.query.pids)[::2]
    rows = []
    for query in chosen:
        nearest = [(word, np.where(wanted & shown[query], dist_mat[query], np.inf)) for word, wanted in
                   (("same person", same[query]), ("another person", ~same[query]))]
        rows.append([(word, (search.query.paths[query], search.gallery.paths[distances.argmin()]))
                     for word, distances in nearest if np.isfinite(distances.min())])
    return rows


@dataclass(frozen=True)
class Tile:
    """An image (a path) with the caption below it, in one colour with its frame, whose line has a style."""

    path: str
    caption: str
    colour: str = "black"
    style: Any = "-"


def draw_ranking(title: str, dist_mat: np.ndarray, shown: np.ndarray, same: np.ndarray, search: Search,
                 spec: ImageSpec) -> Figure:
    """Queries with their first ten gallery images, framed as right or wrong, with camera and distance.

    spec: gives the aspect, and the range. Queries without a match are not shown.
    """
    ranks = first_match(dist_mat, shown, same)
    rows = []
    for query in choose_queries(ranks, search.query.pids):
        pid, camera = search.query.pids[query], search.query.camids[query]
        row = [Tile(search.query.paths[query],
                    f"person {pid}, camera {camera}\nfirst match: rank {ranks[query]}")]
        seen = np.flatnonzero(shown[query])
        for index in seen[np.argsort(dist_mat[query, seen], kind="stable")[:SHOWN]]:
            sign, colour, style = MATCH if same[query, index] else MISS
            caption = f"{sign} camera {search.gallery.camids[index]}\n{max(0.0, dist_mat[query, index]):.3f}"
            row.append(Tile(search.gallery.paths[index], caption, colour, style))
        rows.append(row)
    return draw_sheet(title, rows, min(SHOWN, len(search.gallery)), spec)


def draw_sheet(title: str, rows: Sequence[Sequence[Tile]], count: int, spec: ImageSpec,
               lenient: bool = False) -> Figure:
    """Rows of a query and up to `count` hits, of at most ten, framed and captioned.

    spec: gives the aspect, and the range; lenient: an image that cannot be read is an empty frame,
    rather than a `UserError`.
    """
    heading = textwrap.wrap(title, 105)
    # all lengths are inches, y downwards from the top edge
    zoom = min(0.72 / spec.width, 1.44 / spec.height)
    tall, wide = zoom * spec.height, zoom * spec.width
    tile_spec = replace(spec, height=max(1, round(DPI * tall)), width=max(1, round(DPI * wide)))
    column, line, top = 0.88, tall + 0.48, 0.5 + 0.2 * len(heading)
    centres = 0.65 + column * (np.arange(SHOWN + 1) + 0.2 * (np.arange(SHOWN + 1) > 0))
    across, down = centres[-1] + 0.55, top + line * len(rows)
    figure = Figure(figsize=(across, down), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    write = partial(axes.text, ha="center", va="top", linespacing=1.2)
    write(across / 2, 0.12, "\n".join(heading), fontsize=11)
    for number, x in enumerate(centres[:1 + count]):
        write(x, top - 0.08, str(number) if number else "query", fontsize=9, va="baseline")
    for upper, row in zip(top + line * np.arange(len(rows)), rows):
        for centre, tile in zip(centres, row):
            left = centre - wide / 2
            with contextlib.suppress(*[UserError] if lenient else []):
                axes.imshow(read_image(tile.path, tile_spec),
                            extent=(left, left + wide, upper + tall, upper))
            axes.add_patch(Rectangle((left, upper), wide, tall, fill=False, edgecolor=tile.colour,
                                     linewidth=2.4, linestyle=tile.style))
            write(centre, upper + tall + 0.05, tile.caption, color=tile.colour, fontsize=7)
    axes.set(xlim=(0, across), ylim=(down, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def draw_distances(title: str, word: str, dist_mat: np.ndarray, shown: np.ndarray,
                   same: np.ndarray) -> Figure:
    """Histograms (densities) of distances from queries to gallery images of the same and other persons."""
    figure, axes = curve_axes(title)
    low, high = float(dist_mat.min()), float(dist_mat.max())
    few = np.count_nonzero(shown & same)
    edges = np.linspace(low, max(high, low + 0.1),
                        1 + (BINS if few > 4000 else BINS // 2 if few > 400 else BINS // 4))
    for name, wanted, colour, style in (("genuine", same, BLUE, "-"), ("impostor", ~same, ORANGE, "--")):
        values = dist_mat[shown & wanted]
        if len(values):
            density, _ = np.histogram(values.clip(low, high), edges, density=True)
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(density, edges, color=colour, linestyle=style, linewidth=1.4,
                        label=f"{name} pairs: {len(values):,}, mean {values.mean(dtype=float):.3f}")
    # room for the legend
    axes.set(xlabel=word, ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, 1.25 * axes.dataLim.ymax))
    axes.legend(loc="upper right", fontsize=8)
    return figure


def draw_verification(title: str, pairs: Mapping[str, Pairs]) -> Figure:
    """ROC of each feature: true over false accept rate (log axis), the equal error rate marked."""
    figure, axes = curve_axes(title)
    most = max([len(each.impostor) for each in pairs.values()] + [10])
    for (feature, each), colour, style in zip(pairs.items(), (ORANGE, BLUE), ("--", "-")):
        if not (len(each.genuine) and len(each.impostor)):
            continue
        accepted = np.unique(np.geomspace(1, len(each.impostor), 400).astype(int))
        error = each.equal_error()
        curve = each.accept_rates(np.append(each.ascending[-accepted], -np.inf))
        axes.plot(*curve, color=colour, linestyle=style, linewidth=1.4,
                  label=f"{WORDS[feature]}: EER {error:.2%}")
        axes.plot(error, 1 - error, marker="o", color=colour, markersize=6, markeredgecolor="white", zorder=3)
    rates = np.geomspace(1 / most, 1, 200)
    axes.plot(rates, 1 - rates, color="0.6", linewidth=0.8, linestyle=":", label="equal errors")
    axes.set(xscale="log", xlim=(1 / most, 1), ylim=(0, 1), ylabel="true accept rate (%)",
             xlabel=f"false accept rate ({most:,} impostor pairs)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.legend(loc="best", fontsize=8)
    return figure


def draw_evidence(title: str, rows: Sequence[Sequence[tuple[str, Evidence]]], spec: ImageSpec) -> Figure:
    """Pairs of images with what speaks for them and against them, some captioned pairs a row.

    spec: gives the aspect, and the range. Either image stands beside its map; the colours of a pair have one
    scale.
    """
    columns, across = max(map(len, rows)), 1.44 * spec.width / spec.height
    tile_spec = replace(spec, height=2 * DPI, width=max(1, round(2 * DPI * spec.width / spec.height)))
    figure = Figure(figsize=(0.4 + columns * (4 * across + 0.6), 0.9 + 1.95 * len(rows)), dpi=DPI)
    axes = figure.subplots(len(rows), 5 * columns, squeeze=False, gridspec_kw={
        "width_ratios": [1, 1, 1, 1, 0.4] * columns, "left": 0.01, "right": 1.0, "bottom": 0.01,
        "top": 1 - 0.9 / figure.get_figheight(), "wspace": 0.04, "hspace": 0.3})
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, rows):
        for start, (caption, pair) in zip(range(0, len(line), 5), row):
            first, second = (read_image(path, tile_spec) for path in pair.paths)
            limit = max(np.abs(values).max() for values in pair.maps)
            shown = first, overlay(first, pair.maps[0], limit), overlay(second, pair.maps[1], limit), second
            for axis, pixels in zip(line[start:], shown):
                axis.imshow(pixels, aspect="auto")
            line[start + 1].set_title(f"{caption}\nsimilarity {pair.similarity:.3f}", x=1.02, fontsize=8)
    names = " / ".join(dict.fromkeys(pair.name for row in rows for _, pair in row))
    heading = textwrap.fill(title, round(11 * figure.get_figwidth()))
    heading += f"\n{names}: blue for the pair, orange against it"
    figure.suptitle(heading, fontsize=10, y=0.99, va="top")
    return figure


def overlay(pixels: np.ndarray, evidence: np.ndarray, limit: float) -> np.ndarray:
    """A grey image (height, width, 3) uint8 with what speaks for a pair in blue, and against it in orange.

    evidence: (rows, columns) float32; limit: the evidence that has the full colour.
    """
    strength = np.asarray(Image.fromarray(evidence).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))
    strength = (strength / max(limit, 1e-12)).clip(-1, 1)[..., None]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)[..., None]
    colour = np.where(strength > 0, *(np.float32(to_rgb(name)) * 255 for name in (BLUE, ORANGE)))
    opacity = 0.8 * np.abs(strength)
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)


def draw_embedding(title: str, images: Mapping[str, Images], feats: Mapping[str, np.ndarray]) -> Figure:
    """t-SNE (van der Maaten and Hinton, JMLR 2008) of some persons, evenly from those with both modalities.

    images, feats (N, D): by modality. Colour tells the person, the marker the modality. Where scikit-learn
    does not load, raises `UserError` that says what to install.
    """
    try:
        from sklearn.manifold import TSNE
    except Exception as error:  # of whatever it and NumPy do to each other
        raise UserError(f"embedding.png: left out, as scikit-learn does not load ({type(error).__name__}: "
                        f"{one_line(error)[:120]}); run: pip install -r requirements-figures.txt") from None
    both = np.intersect1d(*(images[modality].pids for modality in MODALITIES))
    persons = both[np.linspace(0, len(both) - 1, min(EMBEDDED, len(both))).astype(int)]
    rows = {modality: np.concatenate([np.flatnonzero(images[modality].pids == pid)[:EACH] for pid in persons])
            for modality in MODALITIES}
    points = np.concatenate([feats[modality][rows[modality]] for modality in MODALITIES])
    places = TSNE(metric="cosine", init="random", perplexity=min(30, (len(points) - 1) / 3),
                  random_state=0).fit_transform(points)
    figure, axes = curve_axes(f"{title}, {len(persons)} of {len(both)} test persons, after BNNeck")
    pids = np.concatenate([images[modality].pids[rows[modality]] for modality in MODALITIES])
    colours = colormaps["tab20"](np.searchsorted(persons, pids) % 20)
    cut = len(rows[MODALITIES[0]])
    for modality, part, marker in zip(MODALITIES, (slice(cut), slice(cut, None)), ("o", "^")):
        look = {"marker": marker, "s": 22, "linewidths": 0.3, "edgecolors": "black"}
        axes.scatter(*places[part].T, c=colours[part], **look)
        axes.scatter([], [], c="0.6", label=modality, **look)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE: one colour a person; only neighbourhoods mean something")
    axes.grid(False)
    axes.legend(loc="best", fontsize=8)
    return figure
