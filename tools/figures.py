"""Figures of several records or runs in one, for a paper: PDF and PNG, and a caption.

    python -m tools.figures cmc results/*/results.json --out figures
    python -m tools.figures tsne results/a/results.json results/b/results.json --persons 6 10 17 --out figures
    python -m tools.figures curves log/sysu_log/*.jsonl --column bnneck/mAP --axis epochs --out figures

Records of several seeds are one method: a band in cmc, roc and curves, the first of them in the others.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
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

KINDS = {"cmc": "CMC curves", "roc": "ROC curves", "distances": "similarities of pairs",
         "tsne": "t-SNE of the same test persons", "ranking": "rankings of the same queries",
         "evidence": "evidence of the same pairs", "curves": "learning curves"}


def build_parser() -> Parser:
    """The arguments of the command line."""
    parser = Parser(description="Draw a figure of several records of test.py --out, or of logs of train.py.")
    parser.add_argument("kind", choices=KINDS,
                        help="what to draw; curves: from logs, the others: from records")
    parser.add_argument("runs", nargs="+", type=filled, metavar="results.json|run.jsonl",
                        help="records of one protocol, or logs")
    parser.add_argument("--out", type=filled, default="figures", metavar="DIR",
                        help="folder of KIND.pdf, KIND.png and the caption KIND.txt")
    parser.add_argument("--names", nargs="+", metavar="NAME",
                        help="of the methods, in their order (default: methods and what tells them apart)")
    parser.add_argument("--feature", choices=(*FEATURES, SUM), default="bnneck", help="what is shown")
    parser.add_argument("--persons", nargs="+", type=int, metavar="ID",
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
    group, draw = (group_logs, draw_learning) if args.kind == "curves" else (group_records, draw_records)
    groups = group(args)
    labels = name_groups(groups, args.names)
    figure, out = draw(args, groups, labels), make_folder(args.out, "--out")
    figures.save(out, {args.kind: figure}, ("pdf", "png"))
    caption = describe(args, groups, labels)
    (out / f"{args.kind}.txt").write_text(caption + "\n", encoding="utf-8")
    print(f"{out / args.kind}.pdf, .png: {caption}")


def name_groups(groups: Sequence[Group], names: Sequence[str] | None) -> list[str]:
    """What the legend calls each group."""
    labels = [group.label for group in groups]
    if names and len(names) != len(labels):
        raise UserError(f"--names: {len(names)} given, {len(labels)} expected, of {', '.join(labels)}; name "
                        "each")
    return names or labels


def group_records(args: argparse.Namespace) -> list[Group]:
    """The records by method, all of one protocol and scored with the feature that is asked for."""
    runs = read_runs(args.runs)
    for each in runs:
        if each.record is None or args.feature not in each.record.features:
            raise UserError(f"{each.path}: no record of a test that scored {args.feature}, which {args.kind} "
                            "shows; name another, or another --feature")
    require_one_protocol(runs)
    return group_runs(runs)


def draw_records(args: argparse.Namespace, groups: Sequence[Group], labels: Sequence[str]) -> Figure:
    """The figure of records by method."""
    feature = args.feature
    if args.kind == "cmc":
        return figures.draw_cmc("", [figures.cmc_curve(label, [each.record for each in group.runs], feature)
                                     for label, group in zip(labels, groups)])
    if args.kind == "roc":
        tested = [[read_tested(each, label, feature) for each in group.runs]
                  for label, group in zip(labels, groups)]
        return figures.draw_roc("", [figures.roc_curve(label, [
            make_pairs(each.similarity, each.seen, each.same) for each in seeds])
            for label, seeds in zip(labels, tested)])
    models = [read_tested(group.runs[0], label, feature) for label, group in zip(labels, groups)]
    persons = known_persons(models[0], args.persons or [])
    if args.kind == "distances":
        return figures.draw_distances("", models)
    if args.kind == "tsne":
        return figures.draw_embedding("", models, persons if len(persons) else
                                      figures.choose_persons(models[0], 8))
    queries = [int(np.flatnonzero(models[0].query.pids == pid)[0]) for pid in persons]
    return draw_images(args, groups, models, queries or spread_queries(models[0], 4))


def draw_images(args: argparse.Namespace, groups: Sequence[Group], models: Sequence[Searched],
                queries: Sequence[int]) -> Figure:
    """The ranking, or the evidence, of some queries by several models."""
    spec = groups[0].runs[0].record.spec
    if args.kind == "ranking":
        return draw_ranking("", models, queries, spec, args.hits, scale=0.58)
    pairs = choose_pairs(models[0], queries)
    found = [explain(group.runs[0], models[0], [paths for _, paths in pairs], args.feature)
             for group in groups]
    rows = [(caption, each) for (caption, _), each in zip(pairs, zip(*found))]
    return draw_evidence("", rows, spec, [tested.label for tested in models] if len(models) > 1 else ("",))


def known_persons(tested: Searched, pids: Sequence[int]) -> np.ndarray:
    """Persons that the search shows in both modalities; raises `UserError` for others."""
    both = np.intersect1d(tested.query.pids, tested.gallery.pids)
    if odd := sorted(set(pids) - set(both.tolist())):
        raise UserError(f"--persons {odd[0]}: not in both modalities of this test; name some of "
                        f"{' '.join(map(str, both[:20]))} ...")
    return np.array(sorted(pids), int)


def read_tested(each: Run, label: str, feature: str) -> Searched:
    """The search of a record's first trial with the features beside it."""
    query, gallery, seen, features = results.read_features(results.features_path(each.path))
    feats = tuple(features[side.modality].take(side, feature) for side in (query, gallery))
    return Searched(label, query, gallery, seen, feats, feature)


def explain(each: Run, tested: Searched, pairs: Sequence[tuple[str, str]], feature: str) -> list:
    """The evidence of pairs of image files in the network of a record."""
    if not each.record.model.paths:
        raise UserError(f"{each.path}: does not say where its checkpoint is; test that checkpoint again")
    net, _ = load_network(each.record.model.paths[0], each.path)
    modalities, kind = (tested.query.modality, tested.gallery.modality), figures.evidence_of(feature)
    return [find_evidence(net, paths, modalities, each.record.spec, kind) for paths in pairs]


# -------------------------------------------------------------------------------------------- learning curves
def group_logs(args: argparse.Namespace) -> list[Group]:
    """The logs by method."""
    return group_runs(read_runs(args.runs))


def draw_learning(args: argparse.Namespace, groups: Sequence[Group], labels: Sequence[str]) -> Figure:
    """A column of the logs against epochs or minutes, a band over seeds as far as all of them come."""
    curves = []
    for label, group in zip(labels, groups):
        found = [read_curve(each.path, args.column, args.axis) for each in group.runs]
        length = min(curve.shape[1] for curve in found)
        x, y = np.stack([curve[:, :length] for curve in found], axis=1)
        curves.append(Curve(label, x.mean(0), y * (100 if "/" in args.column else 1)))
    feature, _, measure = args.column.rpartition("/")
    name = f"{TITLES.get(measure, measure)} (%), {results.WORDS[feature]}" if feature else measure
    return figures.draw_curves("", curves, f"{args.axis} of training", name)


def read_curve(path: str, column: str, axis: str) -> np.ndarray:
    """Epochs or minutes, and the values of a column at those that have it, (2, K)."""
    lines = read_lines(path)
    minutes = np.cumsum([float(line.get("seconds", 0)) for line in lines]) / 60
    x = minutes if axis == "minutes" else [line["epoch"] + 1 for line in lines]
    points = [(at, line[column]) for at, line in zip(x, lines) if column in line]
    if not points:
        known = sorted({name for line in lines for name, value in line.items() if isinstance(value, float)})
        raise UserError(f"--column {column}: {path} holds {', '.join(known)}; name one of these")
    return np.array(points, float).T


def describe(args: argparse.Namespace, groups: Sequence[Group], labels: Sequence[str]) -> str:
    """A caption: what is shown, of which data and protocol, trial, feature and checkpoints."""
    seeds = [f"{label} ({len(group.runs)} {'seed' if len(group.runs) == 1 else 'seeds'})"
             for label, group in zip(labels, groups)]
    files = [name for group in groups for each in group.runs
             for name in (each.record.model.files if each.record else [Path(each.path).name])]
    if args.kind == "curves":
        return (f"Learning curves ({args.column}) of {', '.join(seeds)}; band: a standard deviation over "
                f"seeds; {', '.join(files)}")
    protocol = groups[0].runs[0].record.protocol
    trials = "all trials" if args.kind == "cmc" else f"trial {protocol.trials[0]}"
    band = "; band: a standard deviation over seeds, or trials of one" if args.kind in ("cmc", "roc") else ""
    return (f"{KINDS[args.kind]}: {', '.join(seeds)}{band}; {protocol.name}, {trials}, "
            f"{results.WORDS[args.feature]}; {', '.join(files)}")


if __name__ == "__main__":
    run(main)
