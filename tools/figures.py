"""Figures of several records or runs in one, for a paper: PDF and PNG, and a caption.

    python -m tools.figures cmc results/*/results.json --out figures
    python -m tools.figures tsne results/a/results.json results/b/results.json --persons 6 10 17 --out figures
    python -m tools.figures curves log/sysu_log/*.jsonl --column bnneck/mAP --axis epochs --out figures

Records of several seeds are one method: a band in cmc, roc and curves, the first of them in the others.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import figures
import results
from checkpoint import load_network
from datasets.types import FEATURES, SUM
from figures import Curve, Figure
from pictures import Searched, choose_pairs, draw_evidence, draw_ranking, spread_queries
from retrieval.evidence import find_evidence
from retrieval.verification import make_pairs
from tables import TITLES, Group, Run, group_runs, read_lines, read_runs, require_one_protocol
from command_line import Parser, filled, run
from utils import UserError, make_folder


def draw_cmc(args: argparse.Namespace, groups: Sequence[Group]) -> Figure:
    """A CMC curve a method."""
    return figures.draw_cmc("", [figures.cmc_curve(
        group.label, [each.record for each in group.runs], args.feature) for group in groups])


def draw_roc(args: argparse.Namespace, groups: Sequence[Group]) -> Figure:
    """A ROC curve a method."""
    curves = []
    for group in groups:
        seeds = [read_tested(each, group.label, args.feature) for each in group.runs]
        pairs = [make_pairs(tested.similarity, tested.seen, tested.same) for tested in seeds]
        curves.append(figures.roc_curve(group.label, pairs))
    return figures.draw_roc("", curves)


def draw_distances(args: argparse.Namespace, groups: Sequence[Group]) -> Figure:
    """Densities of similarities, a panel a method."""
    return figures.draw_distances("", read_first(args, groups))


def draw_tsne(args: argparse.Namespace, groups: Sequence[Group]) -> Figure:
    """An embedding of the same persons, a panel a method."""
    models = read_first(args, groups)
    persons = known_persons(models[0], args.persons) or figures.choose_persons(models[0], 8)
    return figures.draw_embedding("", models, np.array(persons))


def draw_rankings(args: argparse.Namespace, groups: Sequence[Group]) -> Figure:
    """Rankings of the same queries, a row a method."""
    models = read_first(args, groups)
    return draw_ranking("", models, choose_queries(models[0], args.persons), groups[0].runs[0].record.spec,
                        args.hits, scale=0.58)


def draw_pairs(args: argparse.Namespace, groups: Sequence[Group]) -> Figure:
    """Evidence of the same pairs by the network of each method's first record."""
    first = read_tested(groups[0].runs[0], "", args.feature)
    modalities = first.query.modality, first.gallery.modality
    pairs, found = choose_pairs(first, choose_queries(first, args.persons)), []
    for each in (group.runs[0] for group in groups):
        model, spec = each.record.model, each.record.spec
        net, _ = load_network((model.paths or model.files)[0], each.path)
        found.append([find_evidence(net, paths, modalities, spec, args.feature) for _, paths in pairs])
    rows = [(caption, each) for (caption, _), each in zip(pairs, zip(*found))]
    labels = [group.label for group in groups] if len(groups) > 1 else [""]
    return draw_evidence("", rows, groups[0].runs[0].record.spec, labels)


def draw_learning(args: argparse.Namespace, groups: Sequence[Group]) -> Figure:
    """A column of the logs against epochs or minutes, a band over seeds as far as all of them come."""
    curves = []
    for group in groups:
        found = [read_curve(each.path, args.column, args.axis) for each in group.runs]
        length = min(curve.shape[1] for curve in found)
        x, y = np.stack([curve[:, :length] for curve in found], axis=1)
        per_cent = 100 if "/" in args.column else 1
        curves.append(Curve(group.label, x.mean(0), per_cent * y, marks=1 + length // 12))
    feature, _, measure = args.column.rpartition("/")
    name = f"{TITLES.get(measure, measure)} (%), {results.WORDS[feature]}" if feature else measure
    return figures.draw_curves("", curves, f"{args.axis} of training", name)


KINDS = {"cmc": ("CMC curves", draw_cmc), "roc": ("ROC curves", draw_roc),
         "distances": ("similarities of pairs", draw_distances),
         "tsne": ("t-SNE of the same test persons", draw_tsne),
         "ranking": ("rankings of the same queries", draw_rankings),
         "evidence": ("evidence of the same pairs", draw_pairs), "curves": ("Learning curves", draw_learning)}


# ---------------------------------------------------------------------------------------- what is to be drawn
def read_first(args: argparse.Namespace, groups: Sequence[Group]) -> list[Searched]:
    """The search of each method's first record."""
    return [read_tested(group.runs[0], group.label, args.feature) for group in groups]


def read_tested(each: Run, label: str, feature: str) -> Searched:
    """The search of a record's first trial with the features beside it."""
    query, gallery, seen, features = results.read_features(results.features_path(each.path))
    feats = tuple(features[side.modality].take(side, feature) for side in (query, gallery))
    return Searched(label, query, gallery, seen, feats, feature)


def known_persons(tested: Searched, pids: Sequence[int]) -> list[int]:
    """Persons that the search shows in both modalities, sorted; raises `UserError` for others."""
    both = np.intersect1d(tested.query.pids, tested.gallery.pids).tolist()
    if odd := sorted(set(pids) - set(both)):
        raise UserError(f"--persons {odd[0]}: not in both modalities of this test; name some of "
                        f"{' '.join(map(str, both[:20]))} ...")
    return sorted(set(pids))


def choose_queries(tested: Searched, pids: Sequence[int]) -> list[int]:
    """A query of each of these persons, or four from the best found to the worst."""
    rows = tested.query.pids.tolist()
    return [rows.index(pid) for pid in known_persons(tested, pids)] or spread_queries(tested, 4)


def read_curve(path: str, column: str, axis: str) -> np.ndarray:
    """Epochs or minutes, and the values of a column at those that have it, (2, K)."""
    lines = [line for line in read_lines(path) if "epoch" in line]
    minutes = np.cumsum([float(line.get("seconds", 0)) for line in lines]) / 60
    x = minutes if axis == "minutes" else [line["epoch"] + 1 for line in lines]
    points = [(at, line[column]) for at, line in zip(x, lines) if column in line]
    if not points:
        known = sorted({name for line in lines for name, value in line.items() if isinstance(value, float)})
        raise UserError(f"--column {column}: {path} holds {', '.join(known) or 'no epochs'}; name one of "
                        "these, or a log of train.py")
    return np.array(points, float).T


# ----------------------------------------------------------------------------------------------- command line
def build_parser() -> Parser:
    """The arguments of the command line."""
    parser = Parser(description="Draw a figure of several records of test.py --out, or of logs of train.py.")
    parser.add_argument("kind", choices=KINDS,
                        help="what to draw; curves: from logs, the others: from records")
    parser.add_argument("runs", nargs="+", type=filled, metavar="results.json|run.jsonl",
                        help="records of one protocol, or logs")
    parser.add_argument("--out", type=filled, default="figures", metavar="DIR",
                        help="folder of KIND.pdf, KIND.png and the caption KIND.txt")
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME",
                        help="of the methods, in their order (default: methods and what tells them apart)")
    parser.add_argument("--feature", choices=(*FEATURES, SUM), default="bnneck", help="what is shown")
    parser.add_argument("--persons", nargs="+", type=int, default=[], metavar="ID",
                        help="tsne: test persons (default: 8, evenly); ranking, evidence: a query of each")
    parser.add_argument("--hits", type=int, choices=range(1, 21), default=5, metavar="N",
                        help="ranking: gallery images of a query")
    parser.add_argument("--column", type=filled, default="bnneck/rank-1",
                        help="curves: what the log calls it")
    parser.add_argument("--axis", choices=("epochs", "minutes"), default="epochs",
                        help="curves: against what")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Draw the figure and its caption."""
    args = build_parser().parse_args(words)
    runs = read_runs(args.runs)
    if args.kind != "curves":
        odd = [each.path for each in runs if each.record is None or args.feature not in each.record.features]
        if odd:
            raise UserError(f"{odd[0]}: no record of a test that scored {args.feature}, which {args.kind} "
                            "shows; name another, or another --feature")
        require_one_protocol(runs)
    groups = group_runs(runs)
    if args.names and len(args.names) != len(groups):
        raise UserError(f"--names: {len(args.names)} given, {len(groups)} expected, of "
                        f"{', '.join(group.label for group in groups)}; name each")
    groups = [replace(group, label=name) for group, name in zip(groups, args.names)] or groups
    title, draw = KINDS[args.kind]
    figure, out, caption = draw(args, groups), make_folder(args.out, "--out"), describe(title, args, groups)
    figures.save(out, {args.kind: figure}, ("pdf", "png"))
    (out / f"{args.kind}.txt").write_text(caption + "\n", encoding="utf-8")
    print(f"{out / args.kind}.pdf, .png: {caption}")


def describe(title: str, args: argparse.Namespace, groups: Sequence[Group]) -> str:
    """A caption: what is shown, of which data and protocol, trial, feature and checkpoints."""
    runs = [each for group in groups for each in group.runs]
    methods = ", ".join(f"{group.label} ({len(group.runs)} {'seed' if len(group.runs) == 1 else 'seeds'})"
                        for group in groups)
    if args.kind == "curves":
        return (f"{title} ({args.column}) of {methods}; band: a standard deviation over seeds; "
                f"{', '.join(Path(each.path).name for each in runs)}")
    protocol = runs[0].record.protocol
    trials = "all trials" if args.kind == "cmc" else f"trial {protocol.trials[0]}"
    band = "; band: a standard deviation over seeds, or trials of one" if args.kind in ("cmc", "roc") else ""
    return (f"{title}: {methods}{band}; {protocol.name}, {trials}, {results.WORDS[args.feature]}; "
            f"{', '.join(name for each in runs for name in each.record.model.files)}")


if __name__ == "__main__":
    run(main)
