"""What a test is of: a checkpoint, the arguments that it fixes, and the searches that it may be tested on."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import options
from checkpoint import as_checkpoint, is_published, load_file, load_published, warn_of_best
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
    own, chosen = saved.args.get("dataset"), saved.optimiser is None
    settings = {"init": bool(saved.args.get("init")), "data": saved.fingerprint,
                "weights": "best" if chosen else f"epoch {saved.epoch}",
                **{name: saved.args[name] for name in options.SETTINGS if name in saved.args}}
    facts = {name: value for name, value in saved.args.items() if name in options.FIXED and name != "trial"}
    model = Model(saved.network(path), path, facts, settings=settings, seed=saved.args.get("seed"))
    if target in (None, own):
        if Path(saved.args.get("data_path") or "/dev/null").is_dir():
            facts["data_path"] = saved.args["data_path"]
        several = own in DATASETS and DATASETS[own].splits > 1
        return replace(model, trial=saved.trial if several else None, chosen=chosen)
    particular = {"dataset", *(name for data in DATASETS.values() for name in data.flags)}
    facts = {name: value for name, value in facts.items() if name not in particular}
    return replace(model, facts=facts, home=DATASETS[own].title if own in DATASETS else own or "")


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
    """What to test a model on, the n-th of ten or the only one (None)."""
    data = DATASETS[args.dataset]
    if place:
        require_trial(args, model, place)
        trials = data.trials(place)
    elif data.splits > 1 and args.trial is None and model.home:
        trials = range(1, data.splits + 1)
    else:
        trials = data.trials(trial_of(args, model) if data.splits > 1 else 1)
    return data.searches(args.data_path, direction=args.direction, trials=trials,
                         **data.keywords("searches", vars(args)))


def trial_of(args: argparse.Namespace, model: Model) -> int:
    """The split to test a model on; raises `UserError` for one whose persons it was trained on."""
    if args.trial is None and model.trial is None:
        raise UserError(f"--resume {model.path}: does not say which trial it was trained on; "
                        "give that with --trial")
    if args.trial is None or model.trial in (None, args.trial) or args.force_trial:
        return args.trial or model.trial
    raise UserError(f"--trial {args.trial}: the checkpoint {model.path} was trained on trial {model.trial}, "
                    f"whose training persons are among the test persons of trial {args.trial}; leave --trial "
                    "out (--force-trial tests all the same)")


def require_trial(args: argparse.Namespace, model: Model, place: int) -> None:
    """Raise `UserError` unless the file of the n-th trial was trained on it."""
    data = DATASETS[args.dataset]
    if data.splits == 1:
        raise UserError(f"--resume {args.resume}: {{}} stands for ten trials, each with a model, but "
                        f"{data.title} has one model; name its file")
    if args.trial is not None:
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
