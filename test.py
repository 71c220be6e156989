"""Test a checkpoint: both features, every trial, mean and standard deviation.

    python test.py --mode all --resume save_model/..._best.t
    python test.py --resume 'save_model/..._trial_{}_best.t'      RegDB: the mean of its ten models
    python test.py --compare a/results.json b/results.json

The record of a test goes to results/, below the current folder, under the checkpoint's name and the
protocol's, or to --out.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import options
import results
from bootstrap import QueryScores
from checkpoint import as_checkpoint, is_published, load_file, load_published, warn_of_best
from data_manager import DATASETS, resolve_arguments
from datasets.types import MODALITIES, TRIALS, ImageSpec, Search
from devices import choose_device, prepare, use_bf16
from engine import Features, distances, rank, scores_of
from eval_metrics import Ranking, modality_gap
from features import Extraction, search_features
from model import TwoStream
from results import FEATURES
from retrieval import verification
from retrieval.evidence import find_evidence
from tables import compare
from utils import (Parser, UserError, atomic_path, make_folder, parse_given, require_matplotlib, run, sha256,
                   warn, write_json)


@dataclass(frozen=True)
class Model:
    """A network to test, with what its checkpoint says of it (trial None: nothing); `chosen`: on the images
    of a test; settings: what its training had in common with that of other seeds; `home`: the data set that
    it was trained on, if it is tested on another; seed: of its training (None: nothing says it).
    """

    net: TwoStream
    path: str
    facts: dict[str, Any]
    trial: int | None = None
    chosen: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    home: str = ""
    seed: int | None = None


def main(words: Sequence[str] | None = None) -> None:
    """Test from the arguments of the command line."""
    parser = options.test_parser()
    args, given = parse_arguments(parser, words)
    if args.compare:
        print(compare(args.compare))
        return
    device = choose_device(args.gpu)
    prepare(device)
    paths = checkpoints(args)
    target = args.dataset if "dataset" in given else None
    if args.out:
        require_matplotlib("--out", ", or leave --out out")
    make_folder(args.out or results.FOLDER, "--out")
    if args.save_features:
        make_folder(Path(args.save_features).parent, "--save-features")
    models, searches, rankings, first = [], [], [], None
    for place, path in enumerate(paths, 1):
        model = away_from_home(load_model(path, parser), target)
        chosen = choose_searches(parser, args, given, model, place if len(paths) > 1 else None)
        warn_of_model(model, chosen[0], known_best=any(other.chosen for other in models))
        features = search_features(model.net.to(device, memory_format=torch.channels_last), chosen,
                                   extraction(args, device))
        rankings += [rank_trial(features, search, args) for search in chosen]
        models, searches, first = [*models, model], [*searches, *chosen], first or (features, chosen[0])
    for line in dict.fromkeys(line for search in searches
                              for line in DATASETS[args.dataset].surprises(args.data_path, search=search)):
        warn(line)
    pairs = {kind: find_pairs(*first, kind) for kind in scored_features(args)}
    record = make_record(args, device, models, searches, rankings, pairs, first[0])
    print("\n".join([*results.lines(record), *verification.lines(record.similarities, pairs),
                     *results.gap_lines(record)]))
    persons = DATASETS[args.dataset].persons(searches)
    write(args, "trial" in given, record, query_scores(searches, persons, rankings), *first)
    if args.out:
        draw(args, record, models[0].net, *first, pairs)


# ----------------------------------------------------------------------------------------------- what to test
def parse_arguments(parser: Parser, words: Sequence[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """The arguments, and the names of those that are given; raises `UserError` where they contradict."""
    args, given = parse_given(parser, words)
    if args.compare:
        if given != {"compare"}:
            flag = next(word for word in words or sys.argv[1:]
                        if word.startswith("-") and not word.startswith("--compare"))
            raise UserError(f"{flag.split('=')[0]}: --compare reads results and tests nothing; "
                            "leave one of the two out")
    elif not args.resume:
        raise UserError("--resume: no checkpoint given; name one")
    if args.save_features and (not args.save_features.endswith(".npz") or Path(args.save_features).is_dir()):
        raise UserError(f"--save-features {args.save_features}: "
                        "the name of a file that ends in .npz expected")
    return args, given


def checkpoints(args: argparse.Namespace) -> list[str]:
    """The files to test, one or one a trial; `UserError` if one is missing or cannot name its results."""
    paths = [args.resume]
    if "{}" in args.resume:
        paths = [args.resume.replace("{}", str(trial)) for trial in range(1, TRIALS + 1)]
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"--resume {path}: no such file; name a "
                            f"checkpoint{' for every trial' if paths[1:] else ''}")
    return paths


def load_model(path: str, parser: Parser) -> Model:
    """A checkpoint of this project, or one of the published AGW or CGRNet code, named as what it is."""
    content = load_file(path, "--resume")
    if is_published(content):
        net, facts, report = load_published(content, path)
        print("\n".join(report))
        return Model(net, path, facts)
    checkpoint = as_checkpoint(content, path)
    data = DATASETS.get(checkpoint.args.get("dataset"))
    trial = checkpoint.trial if data is not None and data.splits > 1 else None
    facts = {name: checkpoint.args[name] for name in parser.fixed & checkpoint.args.keys() if name != "trial"}
    chosen = checkpoint.optimiser is None
    settings = {"init": bool(checkpoint.args.get("init")), "data": checkpoint.fingerprint,
                "weights": "best" if chosen else f"epoch {checkpoint.epoch}, step {checkpoint.step}",
                **{name: checkpoint.args[name] for name in options.SETTINGS if name in checkpoint.args}}
    return Model(checkpoint.network(path), path, facts, trial, chosen, settings,
                 seed=checkpoint.args.get("seed"))


def away_from_home(model: Model, target: str | None) -> Model:
    """The model as a test on another data set sees it, where --dataset names one: none of its persons are in
    that test, it was not chosen on those images, and flags of data sets say nothing.
    """
    own = model.facts.get("dataset")
    if target is None or own in (None, target):
        return model
    particular = {"dataset", *(name for data in DATASETS.values() for name in data.flags)}
    facts = {name: value for name, value in model.facts.items() if name not in particular}
    return replace(model, facts=facts, trial=None, chosen=False,
                   home=DATASETS[own].title if own in DATASETS else own)


def choose_searches(parser: Parser, args: argparse.Namespace, given: set[str], model: Model,
                    place: int | None) -> list[Search]:
    """What to test a model on, the n-th of ten or the only one (None); `UserError` where flags disagree."""
    if "dataset" not in model.facts and "dataset" not in given:
        raise UserError(f"--resume {model.path}: does not say which data set it was trained on; "
                        "give --dataset")
    options.reconcile(parser, args, given, model.facts, model.path)
    resolve_arguments(args)
    data = DATASETS[args.dataset]
    if place:
        require_trial(args, given, model, place)
        given.update(model.facts)  # the other models must be of the same kind
    trials = data.trials(place or (trial_of(args, given, model) if data.splits > 1 else args.trial))
    if model.home and data.splits > 1 and "trial" not in given:
        trials = range(1, data.splits + 1)
    return data.searches(args.data_path, direction=args.direction, trials=trials,
                         **data.keywords("searches", vars(args)))


def trial_of(args: argparse.Namespace, given: set[str], model: Model) -> int:
    """The split to test a model on; raises `UserError` for one whose persons it was trained on."""
    if model.trial is None:
        if "trial" not in given and not model.home:
            raise UserError(f"--resume {model.path}: does not say which trial it was trained on; "
                            "give that with --trial")
        return args.trial
    if "trial" not in given or args.trial == model.trial or args.force_trial:
        return args.trial if "trial" in given else model.trial
    raise UserError(f"--trial {args.trial}: the checkpoint {model.path} was trained on trial {model.trial}, "
                    f"whose training persons are among the test persons of trial {args.trial}; leave --trial "
                    "out (--force-trial tests all the same)")


def require_trial(args: argparse.Namespace, given: set[str], model: Model, place: int) -> None:
    """Raise `UserError` unless the file of the n-th trial was trained on it."""
    data = DATASETS[args.dataset]
    if data.splits == 1:
        raise UserError(f"--resume {args.resume}: {{}} stands for ten trials, each with a model, but "
                        f"{data.title} has one model; name its file")
    if "trial" in given:
        raise UserError(f"--trial {args.trial}: --resume {args.resume} names all ten trials; "
                        "leave one of them out")
    if model.trial not in (None, place) and not args.force_trial:
        raise UserError(f"--resume {model.path}: trained on trial {model.trial}, trial {place} expected by "
                        "its place; rename the file (--force-trial tests all the same)")


def warn_of_model(model: Model, search: Search, known_best: bool) -> None:
    """Warn of scores that say less than they seem to: of a best file, and of persons that the model knows."""
    if model.chosen and not known_best:
        warn_of_best(model.path)
    if model.trial not in (None, search.trial):
        warn(f"--force-trial: {model.path} was trained on trial {model.trial}, "
             f"whose training persons are among the test persons of trial {search.trial}; "
             "these scores say nothing of persons that it does not know")


# ---------------------------------------------------------------------------------------- features and scores
def extraction(args: argparse.Namespace, device: torch.device) -> Extraction:
    """How images become features."""
    spec = ImageSpec.from_arguments(vars(args))
    bf16 = use_bf16(device, args.amp, args.arch, spec)
    return Extraction(spec, args.test_batch, args.workers, bf16, args.flip, silent=False)


def rank_trial(features: dict[str, Features], search: Search, args: argparse.Namespace) -> dict[str, Ranking]:
    """What each query of one search finds with each feature that is scored."""
    return {kind: rank(features, search, kind, args.rerank != "none") for kind in scored_features(args)}


def scored_features(args: argparse.Namespace) -> tuple[str, ...]:
    """The features that are scored; the last is that of the figures."""
    return (args.feature,) if args.feature else FEATURES


def make_record(args: argparse.Namespace, device: torch.device, models: list[Model], searches: list[Search],
                rankings: list[dict[str, Ranking]],
                pairs: dict[str, verification.Pairs], features: dict[str, Features]) -> results.Record:
    """The record of the test; pairs, features: of the first search."""
    paths = [model.path for model in models]
    made = results.Model(args.method, args.arch, tuple(Path(path).name for path in paths),
                         tuple(sha256(Path(path)) for path in paths), models[0].settings, models[0].seed,
                         tuple(paths))
    words = extras(args, device, models, searches)
    return results.Record(results.describe_protocol(searches, args.data_path), tuple(words), made,
                          ImageSpec.from_arguments(vars(args)),
                          tuple(record_trial(*each) for each in zip(searches, rankings)),
                          describe_similarities(words, (features, searches[0]), pairs))


def describe_similarities(named: list[str], first: tuple[dict[str, Features], Search],
                          pairs: dict[str, verification.Pairs]) -> dict[str, Any]:
    """What results.json says of the first search's similarities, which no re-ranking changes."""
    unranked = [extra for extra in named if extra != results.RERANKED]
    return {"calibration": verification.describe(first[1], unranked),
            "thresholds": {kind: verification.thresholds(each) for kind, each in pairs.items()},
            "modality_gap": {kind: find_gap(*first, kind) for kind in pairs}}


def record_trial(search: Search, rankings: dict[str, Ranking]) -> results.Trial:
    """One search's scores with each feature."""
    return results.Trial(search.trial, {kind: scores_of(ranking) for kind, ranking in rankings.items()},
                         results.count(search), search.unmatched())


def query_scores(searches: list[Search], persons: np.ndarray,
                 rankings: list[dict[str, Ranking]]) -> QueryScores:
    """Each query's scores in each draw."""
    draws = np.repeat([search.trial for search in searches], [len(search.query) for search in searches])
    first, ap = ({kind: np.concatenate([getattr(trial[kind], name) for trial in rankings]).astype(dtype)
                  for kind in rankings[0]} for name, dtype in (("first", np.int32), ("ap", np.float32)))
    return QueryScores(draws.astype(np.int16), persons.astype(np.int32), first, ap)


def find_pairs(features: dict[str, Features], search: Search, kind: str) -> verification.Pairs:
    """The genuine and impostor pairs that a search sees."""
    same = search.query.pids[:, None] == search.gallery.pids
    return verification.make_pairs(1 - distances(features, search, kind), search.seen(), same)


def find_gap(features: dict[str, Features], search: Search, kind: str) -> dict[str, float]:
    """How far apart the modalities lie in a search."""
    sides = {side.modality: side for side in (search.query, search.gallery)}
    return modality_gap(*(features[modality].take(sides[modality], kind) for modality in MODALITIES))


# ----------------------------------------------------------------------------------------------------- report
def extras(args: argparse.Namespace, device: torch.device, models: list[Model],
           searches: list[Search]) -> list[str]:
    """What was done beyond the protocol, in words."""
    words = ["flip"] if args.flip else []
    words += ["bfloat16"] if extraction(args, device).bf16 else []
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


def write(args: argparse.Namespace, named: bool, record: results.Record, queries: QueryScores,
          features: dict[str, Features], search: Search) -> None:
    """Write what was found, and the features asked for; named: whether the user gave the trial."""
    if args.save_features:
        save_features(Path(args.save_features), features, search)
    if args.out:
        if results.holds_another(Path(args.out) / "results.json", record):
            warn(f"--out {args.out}: the record of another test was there and is replaced")
        results.write(record, Path(args.out))
        results.write_queries(queries, Path(args.out) / "results.json")
    else:
        path = results.default_path(args.resume, record, named)
        write_json(path, record.to_json())
        results.write_queries(queries, path)
        print(f"results: {path}")


def draw(args: argparse.Namespace, record: results.Record, net: TwoStream, features: dict[str, Features],
         search: Search, pairs: dict[str, verification.Pairs]) -> None:
    """Write the figures of the first trial; without scikit-learn, all but the embedding."""
    import figures  # Matplotlib takes a second to load
    out, rerank = Path(args.out), args.rerank != "none"
    dist_mat = distances(features, search, scored_features(args)[-1], rerank)
    figures.draw(out, record, search, dist_mat, rerank)
    title = " + ".join([record.protocol.name, *record.extras]) + f", trial {search.trial}"
    figures.save(out, {"verification": figures.draw_verification(title, pairs)})
    modalities, spec = (search.query.modality, search.gallery.modality), ImageSpec.from_arguments(vars(args))
    rows = [[(caption, find_evidence(net, pair, modalities, spec))
             for caption, pair in row] for row in figures.choose_pairs(search, dist_mat)]
    figures.save(out, {"evidence": figures.draw_evidence(title, rows, spec)})
    sides = {side.modality: side for side in (search.query, search.gallery)}
    feats = {modality: features[modality].take(side, "bnneck") for modality, side in sides.items()}
    try:
        figures.save(out, {"embedding": figures.draw_embedding(title, sides, feats)})
    except UserError as error:
        warn(str(error))


def save_features(path: Path, features: dict[str, Features], search: Search) -> None:
    """Write both features of query and gallery with pids, camids and paths, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for side, images in (("query", search.query), ("gallery", search.gallery)):
        found = features[images.modality]
        arrays |= {f"{side}_feats": found.take(images, "bnneck"),
                   f"{side}_feats_pool": found.take(images, "pool"),
                   f"{side}_pids": images.pids, f"{side}_camids": images.camids,
                   f"{side}_paths": np.array(images.paths)}
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)


if __name__ == "__main__":
    run(main)
