"""Learning curves of runs: accuracy against minutes or epochs of training, from their JSON lines.

    python -m tools.curves log/sysu_log/*.jsonl --out curves.png [--measure bnneck/rank-1] [--axis epochs]

Runs whose names differ by the seed alone are one colour: each a thin line, their mean a thick one.
"""
from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils import Parser, UserError, atomic_path, filled, run

Curve = np.ndarray  # (2, N): minutes or epochs of training and a fraction, for each evaluation


def main(words: Sequence[str] | None = None) -> None:
    """Draw the curves and print where each ends."""
    args = parse_arguments(words)
    groups: dict[str, list[Curve]] = {}
    stems = Counter(Path(path).stem for path in set(args.runs))
    for path in dict.fromkeys(args.runs):
        place = Path(path).with_suffix("")  # of runs of one name, whose flags differ, the folders tell
        name = re.sub(r"_seed_\d+", "", str(place) if stems[place.name] > 1 else place.name)
        groups.setdefault(name, []).append(read_curve(path, args.measure, args.axis))
    for name, curves in groups.items():
        length, value = np.mean([curve[:, -1] for curve in curves], 0)
        print(f"{name:<48} {len(curves)} run(s), at the end {value:7.2%} after {length:.1f} {args.axis}")
    with atomic_path(Path(args.out)) as temporary:
        FigureCanvasAgg(draw(groups, args.measure, args.axis)).print_png(temporary)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = Parser(description="Draw learning curves from the JSON lines of train.py.")
    parser.add_argument("runs", nargs="+", metavar="run.jsonl", help="JSON lines of a run, below log/")
    parser.add_argument("--measure", type=filled, default="bnneck/rank-1", metavar="FEATURE/NAME",
                        help="what to draw, as the JSON lines call it")
    parser.add_argument("--axis", choices=("minutes", "epochs"), default="minutes",
                        help="against what to draw it: epochs compare runs of machines that differ in speed")
    parser.add_argument("--out", type=filled, default="curves.png", metavar="FILE.png", help="the picture")
    return parser.parse_args(words)


def read_curve(path: str, measure: str, axis: str = "minutes") -> Curve:
    """A run's curve; raises `UserError` for a file that holds no evaluation with this measure."""
    try:
        epochs = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        lengths = {"epochs": [float(epoch["epoch"]) + 1 for epoch in epochs],
                   "minutes": np.cumsum([float(epoch["seconds"]) for epoch in epochs]) / 60}[axis]
        points = [(at, float(epoch[measure])) for at, epoch in zip(lengths, epochs) if measure in epoch]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no JSON lines of a run of train.py ({type(error).__name__}); name a file "
                        "below log/") from None
    if not points or "/" not in measure:
        known = sorted({name for epoch in epochs for name in epoch if "/" in name})
        raise UserError(f"--measure {measure}: {path} holds {', '.join(known) or 'no evaluation'}; "
                        "name one of these")
    return np.array(points).T


def draw(groups: dict[str, list[Curve]], measure: str, axis: str = "minutes") -> Figure:
    """One colour a group of runs: thin lines, and the mean over runs as far as all of them come."""
    figure = Figure(figsize=(6.4, 4.2), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    common, labels = split_names(list(groups))
    for number, (label, curves) in enumerate(zip(labels, groups.values())):
        colour = f"C{number % 10}"
        for curve in curves:
            axes.plot(*(curve * [[1], [100]]), color=colour, linewidth=0.6, alpha=0.6)
        axes.plot(*(mean_curve(curves) * [[1], [100]]), color=colour, linewidth=1.8,
                  label=f"{label} ({len(curves)})")
    axes.set(xlabel=f"{axis} of training", ylabel=f"{measure} (%)", xlim=(0, None), ylim=(0, None))
    axes.set_title(common, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(fontsize=8)
    return figure


def split_names(names: list[str]) -> tuple[str, list[str]]:
    """Names of runs as the words that all of them have, * for the others, and those others of each."""
    words = [name.split("_") for name in names]
    shared = set.intersection(*map(set, words))
    labels = ["_".join(word for word in name if word not in shared) or "*" for name in words]
    if len(set(labels)) < len(names) or len(names) == 1:
        return "", names
    return "_".join(word if word in shared else "*" for word in max(words, key=len)), labels


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean over runs, by evaluation, of lengths and values, as far as the shortest run comes."""
    length = min(curve.shape[1] for curve in curves)
    return np.mean([curve[:, :length] for curve in curves], axis=0)


if __name__ == "__main__":
    run(main)
