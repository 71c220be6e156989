"""What a test is of: a checkpoint, the arguments that it fixes, and the searches that it may be tested on."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import options
from checkpoint import as_checkpoint, is_published, load_file, load_published
from data_manager import DATASETS
from datasets.types import Search
from model import METHODS
from two_stream import TwoStream
from utils import UserError, warn


@dataclass(frozen=True)
class Model:
    """A network to test, and what its checkpoint says of its training.

    facts: values of flags; trial, seed: None where nothing says them; chosen: on the images of a test, as
    `best` is; settings: what it has in common with models of other seeds; home: the data set that it was
    trained on, if it is tested on another.
    """

    net: TwoStream
    path: str
    facts: dict[str, Any]
    trial: int | None = None
    chosen: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    home: str = ""


def load_model(path: str, target: str | None) -> Model:
    """Read a checkpoint of this project or a published one; target: the data set that --dataset names.

    On another data set than its own, none of its persons are in the test, it was not chosen on those images,
    and its flags of data sets say nothing.
    """
    content = load_file(path, "--resume")
    if is_published(content):
        net, facts, report = load_published(content, path)
        print("\n".join(report))
        return Model(net, path, facts)
    saved = as_checkpoint(content, path)
    best, data = saved.optimiser is None, DATASETS.get(saved.args.get("dataset"))
    facts = {name: value for name, value in saved.args.items() if name in options.FIXED and name != "trial"}
    settings = {"init": bool(saved.args.get("init")), "data": saved.fingerprint,
                "weights": "best" if best else f"epoch {saved.epoch}",
                **{name: saved.args[name] for name in options.SETTINGS if name in saved.args}}
    model = Model(saved.network(path), path, facts, settings=settings, seed=saved.args.get("seed"))
    if target in (None, facts.get("dataset")):
        if Path(saved.args.get("data_path") or "/dev/null").is_dir():
            facts["data_path"] = saved.args["data_path"]
        return replace(model, trial=saved.trial if data and data.splits > 1 else None, chosen=best)
    for name in ("dataset", *(name for other in DATASETS.values() for name in other.flags)):
        facts.pop(name, None)
    return replace(model, home=data.title if data else str(saved.args.get("dataset") or ""))


def parse_for(model: Model, words: Sequence[str], first: argparse.Namespace | None) -> argparse.Namespace:
    """The arguments of a test of this model; first: those of the first of several models.

    Raises `UserError` where the command line contradicts the checkpoint, or this model another.
    """
    parser = options.test_parser()
    if "method" in model.facts:
        parser.set_defaults(**METHODS[model.facts["method"]].size)  # which a published file does not say
    args = options.parse_with(parser, words, model.facts, model.path)
    if args.dataset is None:
        raise UserError(f"--resume {model.path}: does not say which data set it was trained on; "
                        "give --dataset")
    args = options.resolve(args)
    for name in sorted(options.FIXED & vars(args).keys() - {"trial"}) if first else ():
        if getattr(args, name) != getattr(first, name):
            raise UserError(f"--resume {model.path}: {parser.flag(name)} {getattr(args, name)}, where the "
                            f"first model has {getattr(first, name)}; models of one kind expected")
    return args


def choose_searches(args: argparse.Namespace, model: Model, place: int | None) -> list[Search]:
    """What to test a model on, the n-th of ten or the only one (None).

    Raises `UserError` unless one split is known, whose test persons the model was not trained on.
    """
    data = DATASETS[args.dataset]
    if place and (data.splits == 1 or args.trial):
        but = (f"--trial {args.trial} says one; leave it out" if args.trial else
               f"{data.title} has one model; name its file")
        raise UserError(f"--resume {args.resume}: {{}} stands for ten trials, each with a model, but {but}")
    trial = 1 if data.splits == 1 else place or args.trial or model.trial
    if trial is None and not model.home:
        raise UserError(f"--resume {model.path}: does not say which trial it was trained on; "
                        "give that with --trial")
    if model.trial not in (None, trial) and not args.force_trial:
        fault = (f"--resume {model.path}: trained on trial {model.trial}, trial {trial} expected by its "
                 "place; rename the file" if place else
                 f"--trial {trial}: the checkpoint {model.path} was trained on trial {model.trial}, whose "
                 f"training persons are among the test persons of trial {trial}; leave --trial out")
        raise UserError(f"{fault} (--force-trial tests all the same)")
    trials = data.trials(trial) if trial else range(1, data.splits + 1)
    return data.searches(args.data_path, direction=args.direction, trials=trials,
                         **data.keywords("searches", vars(args)))


def warn_of_model(model: Model, search: Search, known_best: bool) -> None:
    """Warn of scores that say less than they seem to: of a best file, and of persons that the model knows."""
    if model.chosen and not known_best:
        warn(f"--resume {model.path}: a best file, chosen on the test images that it is reported on, as is "
             "usual in this field; a last file is not")
    if model.trial not in (None, search.trial):
        warn(f"--force-trial: {model.path} was trained on trial {model.trial}, "
             f"whose training persons are among the test persons of trial {search.trial}; "
             "these scores say nothing of persons that it does not know")
