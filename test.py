"""Test a checkpoint: both features, every trial, mean and standard deviation.

    python test.py --mode all --resume save_model/..._best.t
    python test.py --resume 'save_model/..._trial_{}_best.t'      RegDB: the mean of its ten models
    python test.py --resume 'save_model/..._seed_{}_last.t'       every seed that is there, each by itself
    python test.py --compare a/results.json b/results.json

The record of a test goes to results/, below the current folder, under the checkpoint's name and the
protocol's, or to --out.
"""
from __future__ import annotations

import argparse
import glob
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import options
import results
from bootstrap import QueryScores
from command_line import run
from data_manager import DATASETS
from datasets.types import TRIALS, Features, ImageSpec, Search
from devices import choose_device, prepare, use_bf16
from engine import distances, find_gap, find_pairs, query_scores, rank, scores_of
from eval_metrics import Ranking
from features import Extraction, search_features
from model import TwoStream
from results import FEATURES
from retrieval import verification
from retrieval.evidence import Evidence, find_evidence
from tables import compare
from tested import Model, choose_searches, load_model, parse_for, warn_of_model
from utils import UserError, make_folder, require_matplotlib, sha256, warn, write_json


def main(words: Sequence[str] | None = None) -> None:
    """Test one model, those of ten trials together, or those of all seeds; or compare records."""
    words = list(map(str, sys.argv[1:] if words is None else words))
    args = options.test_parser().parse_args(words)
    if args.compare:
        others = [word for word in words if word.startswith("-") and not word.startswith("--compare")]
        if others:
            raise UserError(f"{others[0].split('=')[0]}: --compare reads results and tests nothing; leave "
                            "one of the two out")
        print(compare(args.compare))
    elif not args.resume:
        raise UserError("--resume: no checkpoint given; name one")
    elif "seed_{}" in args.resume:
        test_every_seed(args, words)
    else:
        test(words)


def test_every_seed(args: argparse.Namespace, words: list[str]) -> None:
    """Test the model of each seed that is there, each with a record of its own, and compare the records."""
    before, after = args.resume.split("seed_{}", 1)
    there = glob.glob(glob.escape(before) + "seed_*" + glob.escape(after).replace("{}", "*"))
    pattern = re.escape(before) + r"seed_(\d+)" + re.escape(after).replace(r"\{\}", r"\d+")
    seeds = sorted({int(found[1]) for path in there if (found := re.fullmatch(pattern, path))})
    if not seeds:
        raise UserError(f"--resume {args.resume}: no file of any seed there; name checkpoints of some")
    records = []
    for seed in seeds:
        more = ["--resume", f"{before}seed_{seed}{after}"]
        more += ["--out", str(Path(args.out) / f"seed_{seed}")] if args.out else []
        print(f"\n$ python test.py {' '.join(more)}")
        records.append(str(test([*words, *more])))
    print("\n" + compare(records))


def test(words: Sequence[str]) -> Path:
    """Load, extract, score, report; the path of the record."""
    args = options.test_parser().parse_args(words)
    paths = find_checkpoints(args.resume)
    check_outputs(args)
    device = choose_device(args.gpu)
    prepare(device)
    models, searches, rankings, first = [], [], [], None
    for place, path in enumerate(paths, 1):
        model = load_model(path, args.dataset)
        args = parse_for(model, words, args if models else None)
        chosen = choose_searches(args, model, place if len(paths) > 1 else None)
        warn_of_model(model, chosen[0], known_best=any(other.chosen for other in models))
        spec = ImageSpec.from_arguments(vars(args))
        bf16 = use_bf16(device, args.amp, args.arch, spec)
        settings = Extraction(spec, args.test_batch, args.workers, bf16, args.flip, silent=False)
        found = search_features(model.net.to(device, memory_format=torch.channels_last), chosen, settings)
        rankings += [{kind: rank(found, search, kind, args.rerank != "none") for kind in scored(args)}
                     for search in chosen]
        first = first or (found, chosen[0])
        models.append(model)
        searches += chosen
    data = DATASETS[args.dataset]
    for line in dict.fromkeys(line for search in searches
                              for line in data.surprises(args.data_path, search=search)):
        warn(line)
    pairs = {kind: find_pairs(*first, kind) for kind in scored(args)}
    record = make_record(args, settings, models, searches, rankings, first, pairs)
    written = write(args, record, query_scores(searches, data.persons(searches), rankings), *first)
    print("\n".join([*results.lines(record), *verification.lines(record.similarities, pairs),
                     *results.gap_lines(record)]))
    if args.out:
        draw(args, record, models[0].net, *first, pairs)
    print(f"results: {written}" + (f", figures: {Path(args.out) / '*.png'}" if args.out else ""))
    return written


def find_checkpoints(resume: str) -> list[str]:
    """The file to test, or those of ten trials where `{}` stands for the trial; `UserError` without one."""
    several = "{}" in resume
    paths = [resume.replace("{}", str(trial)) for trial in range(1, TRIALS + 1)] if several else [resume]
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"--resume {path}: no such file; name a "
                            f"checkpoint{' for every trial' if several else ''}")
    return paths


def check_outputs(args: argparse.Namespace) -> None:
    """Find out before the work whether its results can be written and drawn; raises `UserError`."""
    if args.out:
        require_matplotlib("--out", ", or leave --out out")
    make_folder(args.out or results.FOLDER, "--out")
    if args.save_features:
        if not args.save_features.endswith(".npz") or Path(args.save_features).is_dir():
            raise UserError(f"--save-features {args.save_features}: the name of a file that ends in .npz "
                            "expected")
        make_folder(Path(args.save_features).parent, "--save-features")


def scored(args: argparse.Namespace) -> tuple[str, ...]:
    """The features that are scored; the last is that of the figures."""
    return (args.feature,) if args.feature else FEATURES


# ----------------------------------------------------------------------------------------------------- report
def make_record(args: argparse.Namespace, settings: Extraction, models: list[Model], searches: list[Search],
                rankings: list[dict[str, Ranking]], first: tuple[dict[str, Features], Search],
                pairs: dict[str, verification.Pairs]) -> results.Record:
    """The record of the test; its similarities are the first search's, which no re-ranking changes."""
    paths = [Path(model.path) for model in models]
    made = results.Model(args.method, args.arch, tuple(path.name for path in paths),
                         tuple(map(sha256, paths)), models[0].settings, models[0].seed,
                         tuple(map(str, paths)))
    trials = tuple(results.Trial(search.trial, {kind: scores_of(ranking) for kind, ranking in found.items()},
                                 results.count(search), search.unmatched())
                   for search, found in zip(searches, rankings))
    named = tuple(extras(args, settings, models, searches))
    unranked = [extra for extra in named if extra != results.RERANKED]
    similarities = {"calibration": verification.describe(first[1], unranked),
                    "thresholds": {kind: verification.thresholds(each) for kind, each in pairs.items()},
                    "roc": {kind: verification.roc(each) for kind, each in pairs.items()},
                    "modality_gap": {kind: find_gap(*first, kind) for kind in pairs}}
    return results.Record(results.describe_protocol(searches, args.data_path), named, made, settings.spec,
                          trials, similarities)


def extras(args: argparse.Namespace, settings: Extraction, models: list[Model],
           searches: list[Search]) -> list[str]:
    """What was done beyond the protocol, in words."""
    words = ["flip"] if args.flip else []
    words += ["bfloat16"] if settings.bf16 else []
    words += ["range {} {}".format(*args.range)] if args.range else []
    words += [f"feature {args.feature}"] if args.feature else []
    words += [results.RERANKED] if args.rerank == "k-reciprocal" else []
    words += sorted({f"trained on {model.home}" for model in models if model.home})
    forced = [(search.trial, model.trial) for model, search in zip(models, searches)
              if model.trial not in (None, search.trial)]
    if forced and len(models) == 1:
        words.append(f"trained on trial {forced[0][1]}")
    elif forced:
        tested, trained = (", ".join(map(str, numbers)) for numbers in zip(*forced))
        words.append(f"trial {tested} trained on trial {trained}")
    return words


def write(args: argparse.Namespace, record: results.Record, queries: QueryScores,
          features: dict[str, Features], search: Search) -> Path:
    """Write the record, the scores of each query beside it, and the features asked for."""
    if args.save_features:
        results.write_features(Path(args.save_features), search, features)
    if args.out:
        path = Path(args.out) / "results.json"
        if results.holds_another(path, record):
            warn(f"--out {args.out}: the record of another test was there and is replaced")
        results.write(record, Path(args.out))
    else:
        path = results.default_path(args.resume, record, args.trial is not None)
        write_json(path, record.to_json())
    results.write_queries(queries, path)
    if args.out:
        results.write_features(results.features_path(path), search, features)
    return path


def draw(args: argparse.Namespace, record: results.Record, net: TwoStream, features: dict[str, Features],
         search: Search, pairs: dict[str, verification.Pairs]) -> None:
    """Write the figures of the first trial; without scikit-learn, all but the embedding."""
    import figures  # Matplotlib takes a second to load
    kind = scored(args)[-1]
    feats = tuple(features[side.modality].take(side, kind) for side in (search.query, search.gallery))
    order = distances(features, search, kind, True) if args.rerank != "none" else None
    tested = figures.Searched(args.method, search.query, search.gallery, search.seen(), feats, kind, order)
    modalities = search.query.modality, search.gallery.modality

    def explain(paths: tuple[str, str]) -> Evidence:
        return find_evidence(net, paths, modalities, record.spec, kind)

    figures.draw(Path(args.out), record, tested, pairs, explain)


if __name__ == "__main__":
    run(main)
