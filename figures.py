"""Figures of one test, or of several side by side: curves, similarities of pairs, an embedding.

Every number is a cosine similarity. Sizes are those of a column of a paper; what colour tells, a dash, a
marker or a sign tells too.
"""
from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from datasets.types import MODALITIES
from pictures import (BLUE, COLUMN, DPI, ORANGE, Searched, choose_pairs, draw_evidence, draw_ranking,
                      spread_queries)
from results import WORDS, Record
from retrieval.verification import Pairs
from utils import UserError, as_user_error, atomic_path, warn

if TYPE_CHECKING:
    from retrieval.evidence import Evidence

EMBEDDED, EACH = 20, 12  # persons, and images of each in each modality
# Colours that everybody can tell apart (Okabe and Ito), each with its dash and marker.
LOOKS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), ("#009e73", "-.", "^"), ("#cc79a7", ":", "D"),
         ("#56b4e9", (0, (5, 1, 1, 1, 1, 1)), "v"), ("#e69f00", (0, (8, 2)), "P"),
         ("#000000", (0, (1, 2)), "X"))


@dataclass(frozen=True)
class Curve:
    """A curve of several runs, trials or seeds: x (K,), y (N, K); every `marks`-th point has a marker."""

    label: str
    x: np.ndarray
    y: np.ndarray
    marks: int = 1


def draw(out: Path, record: Record, tested: Searched, pairs: Mapping[str, Pairs],
         explain: Callable[[tuple[str, str]], Evidence]) -> None:
    """Write the figures of a test into a folder: six PNG files, each whole or not at all.

    tested, pairs by feature: of the first trial; explain: the evidence of two image files. Where scikit-learn
    does not load, warns, and writes all but the embedding.
    """
    title = " + ".join([f"{record.model.method}: {record.protocol.name}", *record.extras])
    first = f"{title}, trial {record.trials[0].number}"
    shown = f"{first}, {WORDS[tested.feature]}"
    curves = [cmc_curve(WORDS[feature], [record], feature) for feature in record.features]
    rocs = [roc_curve(WORDS[feature], [each]) for feature, each in pairs.items()
            if len(each.genuine) and len(each.impostor)]
    queries = spread_queries(tested)
    rows = [(caption, [explain(pair)]) for caption, pair in choose_pairs(tested, queries[::2])]
    save(out, {"cmc": draw_cmc(title, curves), "ranking": draw_ranking(shown, [tested], queries, record.spec),
               "distances": draw_distances(shown, [tested]), "verification": draw_roc(first, rocs),
               "evidence": draw_evidence(shown, rows, record.spec)})
    try:
        save(out, {"embedding": draw_embedding(shown, [tested])})
    except UserError as error:
        warn(str(error))


def save(out: Path, figures: Mapping[str, Figure], formats: Sequence[str] = ("png",)) -> None:
    """Write figures by name into a folder, each file whole or not at all."""
    for (name, figure), ending in itertools.product(figures.items(), formats):
        undated = {"CreationDate": None} if ending == "pdf" else {}
        with atomic_path(out / f"{name}.{ending}") as temporary, rc_context({"pdf.fonttype": 42}):
            figure.savefig(temporary, format=ending, metadata=undated)


def make_panels(title: str, count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of a column's width with some panels side by side that share their axes."""
    figure = Figure(figsize=(COLUMN, height), dpi=DPI, layout="constrained")
    figure.suptitle("\n".join(textwrap.fill(line, 54) for line in title.split("\n")), fontsize=8)
    panels = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    for axes in panels:
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.5)
        axes.set_axisbelow(True)
    return figure, list(panels)


def name_axes(figure: Figure, axes: Axes, x: str, y: str) -> None:
    """Name the axes, and put the legend below them."""
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 1 if max(map(len, labels)) > 30 else 2
        figure.legend(handles, labels, loc="outside lower center", fontsize=7, frameon=False,
                      handlelength=3.5, ncols=columns)


# ----------------------------------------------------------------------------------------------------- curves
def plot(title: str, curves: Sequence[Curve], x: str, y: str, height: float = 2.7) -> tuple[Figure, Axes]:
    """Curves on one panel: the mean of the runs of each, in a band of a standard deviation."""
    figure, (axes,) = make_panels(title, 1, height)
    for curve, (colour, dash, marker) in zip(curves, itertools.cycle(LOOKS)):
        mean, std = curve.y.mean(0), curve.y.std(0)
        if len(curve.y) > 1:
            axes.fill_between(curve.x, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        axes.plot(curve.x, mean, linestyle=dash, color=colour, marker=marker, markersize=3, linewidth=1.1,
                  markevery=curve.marks, clip_on=False, zorder=3, label=curve.label)
    name_axes(figure, axes, x, y)
    return figure, axes


def cmc_curve(label: str, records: Sequence[Record], feature: str) -> Curve:
    """The CMC curve of a feature in per cent; a run is a seed, or a trial of the only one."""
    curves = [record.cmc(feature) for record in records]
    curves = curves[0] if len(curves) == 1 else np.stack([each.mean(0) for each in curves])
    rank, mean_ap = curves[:, 0].mean(), np.mean([each.values(feature, "mAP").mean() for each in records])
    return Curve(f"{label}: Rank-1 {rank:.2%}, mAP {mean_ap:.2%}", np.arange(1, curves.shape[1] + 1),
                 100 * curves)


def draw_cmc(title: str, curves: Sequence[Curve]) -> Figure:
    """CMC curves; where the axis does not begin at 0, two strokes mark the cut."""
    lowest = min((curve.y.mean(0) - curve.y.std(0)).min() for curve in curves)
    bottom = 10 * (lowest // 10) - 20 if lowest >= 50 else 0
    cut = f", cut at {bottom:.0f}" if bottom else ""
    figure, axes = plot(title, curves, "rank", f"matching rate (%{cut})")
    last = curves[0].x[-1]
    axes.set(xlim=(0.5, last + 0.5), ylim=(bottom, 100), xticks=[1, *range(5, last + 1, 5)])
    if bottom:
        axes.plot([0, 0], [0.04, 0.07], transform=axes.transAxes, linestyle="", color="black", clip_on=False,
                  marker=[(-1, -0.5), (1, 0.5)], markersize=7, markeredgewidth=0.8)
    return figure


def roc_curve(label: str, pairs: Sequence[Pairs]) -> Curve:
    """The ROC curve in per cent: a run is a seed; x: false accept rates from one impostor pair on."""
    error = np.mean([each.equal_error() for each in pairs])
    rates = np.geomspace(1 / max(len(each.impostor) for each in pairs), 1, 300)
    accepted = []
    for each in pairs:
        through = (rates * len(each.impostor) + 1e-6).astype(int)  # impostors that each rate lets through
        thresholds = np.append(-np.inf, each.ascending)[len(each.impostor) - through]
        accepted.append(each.accept_rates(thresholds)[1])
    return Curve(f"{label}: equal error rate {error:.2%}", 100 * rates, 100 * np.array(accepted), marks=30)


def draw_roc(title: str, curves: Sequence[Curve]) -> Figure:
    """ROC curves: true over false accept rate (log axis), and where both errors are equal."""
    figure, axes = plot(title, curves, "false accept rate (%)", "true accept rate (%)", height=2.9)
    rates = np.geomspace(0.001, 100, 200)
    axes.plot(rates, 100 - rates, color="0.6", linewidth=0.8, linestyle=":")
    axes.text(0.97, 0.03, "dotted: equal errors", transform=axes.transAxes, ha="right", fontsize=7,
              color="0.4")
    axes.set(xscale="log", xlim=(min([1, *(curve.x[0] for curve in curves)]), 100), ylim=(0, 100))
    axes.xaxis.set_major_formatter("{x:g}")
    return figure


def draw_curves(title: str, curves: Sequence[Curve], x: str, y: str) -> Figure:
    """Learning curves."""
    figure, axes = plot(title, curves, x, y)
    if min(curve.y.min() for curve in curves) >= 0:
        axes.set_ylim(0, 1.05 * max(curve.y.max() for curve in curves) or 1)
    axes.set_xlim(0, 1.02 * max(curve.x.max() for curve in curves))
    return figure


# ---------------------------------------------------------------------------------- similarities of all pairs
def pair_similarities(tested: Searched, most: int = 2000) -> dict[tuple[str, str], np.ndarray]:
    """Similarities of pairs by ("same" or "other" person, where): across, and within either modality.

    Within a modality each pair comes once, of at most `most` images, evenly chosen.
    """
    found = {("same", "across"): tested.similarity[tested.seen & tested.same],
             ("other", "across"): tested.similarity[tested.seen & ~tested.same]}
    for images, feats in zip((tested.query, tested.gallery), tested.feats):
        rows = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)
        first, second = np.triu_indices(len(rows), 1)
        similarity = (feats[rows] @ feats[rows].T)[first, second]
        same = images.pids[rows][first] == images.pids[rows][second]
        found["same", f"within {images.modality}"] = similarity[same]
        found["other", f"within {images.modality}"] = similarity[~same]
    return found


def draw_distances(title: str, models: Sequence[Searched]) -> Figure:
    """Densities of the similarity of pairs of the same person and of others, across and within modalities."""
    found = [pair_similarities(tested) for tested in models]
    figure, panels = make_panels(title, len(models), 3.1)
    values = np.concatenate([each for pairs in found for each in pairs.values()])
    few = min(len(each) for pairs in found for each in pairs.values())
    bins = 50 if few > 4000 else 25 if few > 400 else 12
    edges = np.linspace(values.min(), max(values.max(), values.min() + 0.1), 1 + bins)
    looks = {"same": (BLUE, "o"), "other": (ORANGE, "")}
    dashes = {"across": "-", f"within {MODALITIES[0]}": "--", f"within {MODALITIES[1]}": ":"}
    for axes, tested, pairs in zip(panels, models, found):
        for (person, (colour, marker)), (where, dash) in itertools.product(looks.items(), dashes.items()):
            if len(pairs[person, where]):
                density, _ = np.histogram(pairs[person, where], edges, density=True)
                axes.plot((edges[1:] + edges[:-1]) / 2, density, color=colour, linestyle=dash, marker=marker,
                          markersize=2.5, markevery=bins // 12, linewidth=1.1, label=f"{person}, {where}")
        if len(models) > 1:
            axes.set_title(textwrap.fill(tested.label, 60 // len(models)), fontsize=8)
        axes.set_ylim(0, None)
        axes.set_xlabel("cosine similarity", fontsize=8)
    name_axes(figure, panels[0], "cosine similarity", "density")
    return figure


# -------------------------------------------------------------------------------------------------- embedding
def choose_persons(tested: Searched, count: int = EMBEDDED) -> np.ndarray:
    """Some of the test persons with images in both modalities, evenly."""
    both = np.intersect1d(tested.query.pids, tested.gallery.pids)
    return both[np.linspace(0, len(both) - 1, min(count, len(both))).astype(int)]


def draw_embedding(title: str, models: Sequence[Searched], persons: np.ndarray | None = None) -> Figure:
    """t-SNE (van der Maaten and Hinton, JMLR 2008) of the same test persons, a panel a model.

    Colour tells the person, and at most ten persons have their numbers; the marker tells the modality. Where
    scikit-learn does not load, raises `UserError` that says what to install.
    """
    with as_user_error("embedding.png: left out, as scikit-learn does not load",
                       "run: pip install -r requirements-figures.txt"):
        from sklearn.manifold import TSNE
    persons = choose_persons(models[0]) if persons is None else persons
    everybody = len(np.intersect1d(models[0].query.pids, models[0].gallery.pids))
    figure, panels = make_panels(f"{title}\nt-SNE of {len(persons)} of {everybody} test persons", len(models),
                                 3.6 if len(models) == 1 else 0.9 + COLUMN / len(models))
    for axes, tested in zip(panels, models):
        sides = tested.query, tested.gallery
        rows = [np.concatenate([np.flatnonzero(images.pids == pid)[:EACH] for pid in persons])
                for images in sides]
        points = np.concatenate([feats[chosen] for feats, chosen in zip(tested.feats, rows)])
        places = TSNE(metric="cosine", init="random", perplexity=min(30, (len(points) - 1) / 3),
                      random_state=0).fit_transform(points)
        for images, chosen, marker, xy in zip(sides, rows, "o^", np.split(places, [len(rows[0])])):
            pids = images.pids[chosen]
            axes.scatter(*xy.T, c=colormaps["tab20"](np.searchsorted(persons, pids) % 20), marker=marker,
                         s=14 / len(models), linewidths=0.25, edgecolors="black")
            axes.scatter([], [], c="0.6", marker=marker, s=14, label=images.modality)
            for pid in persons if len(persons) <= 10 else ():
                axes.text(*np.median(xy[pids == pid], axis=0), str(pid), fontsize=6, ha="center", va="center",
                          path_effects=[withStroke(linewidth=1.5, foreground="white")])
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.set_title(tested.label if len(models) > 1 else "", fontsize=8)
    name_axes(figure, panels[0], "", "")
    return figure
