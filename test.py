"""Test a checkpoint: both features, every trial, mean and standard deviation.

    python test.py --mode all --resume save_model/..._best.t
    python test.py --resume 'save_model/..._trial_{}_best.t'      RegDB: the mean of its ten models
    python test.py --compare a/results.json b/results.json

The record of a test goes to results/, below the current folder, under the checkpoint's name and the protocol's, or to --out.
"""
from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foreign
import results
from checkpoint import is_own, load_checkpoint, load_file, network_of, warn_of_best
from data_manager import DATASETS, TRIALS, Protocol, resolve_arguments, surprises
from devices import choose_device, prepare, use_bf16
from extraction import FEATURES, Extraction, score, search_features, side_features
from model import ARCHS, METHODS, TwoStream
from utils import (Parser, UserError, add_shared_arguments, atomic_path, filled, make_folder, parse_given, run, sha256, warn,
                   write_json)

FROM_CHECKPOINT = ("dataset", "method", "arch", "img_w", "img_h")
LONGEST = 100  # bytes of a checkpoint's name that still leave room for the protocol's in a file name


def build_parser() -> Parser:
    """The arguments of testing, on top of those shared with train.py."""
    parser = Parser(description="Test a model for visible-infrared person re-identification.")
    add_shared_arguments(parser, DATASETS, METHODS, ARCHS)
    parser.set_defaults(amp="off")  # others check their numbers against these
    parser.add_argument("--flip", action="store_true", help="add the features of the mirror image")
    parser.add_argument("--rerank", choices=("none", "k-reciprocal"), default="none", help="re-rank the distances")
    parser.add_argument("--force-trial", action="store_true", help="RegDB: test on a split whose persons the model may know")
    parser.add_argument("--save-features", type=filled, metavar="FILE.npz", help="write the features of the first trial")
    parser.add_argument("--out", type=filled, metavar="DIR",
                        help="write results.json, results.csv and figures there, rather than one JSON file into results")
    parser.add_argument("--compare", nargs="+", metavar="results.json", help="print results of one protocol side by side")
    return parser


def parse_arguments() -> tuple[argparse.Namespace, set[str]]:
    """The arguments, and the names of those that the command line gives; raises `UserError` where they contradict."""
    args, given = parse_given(build_parser())
    if args.compare:
        if given != {"compare"}:
            flag = next(word for word in sys.argv[1:] if word.startswith("-") and not word.startswith("--compare"))
            raise UserError(f"{flag.split('=')[0]}: --compare reads results and tests nothing; leave one of the two out")
    elif not args.resume:
        raise UserError("--resume: no checkpoint given; name one")
    if args.save_features and (not args.save_features.endswith(".npz") or Path(args.save_features).is_dir()):
        raise UserError(f"--save-features {args.save_features}: the name of a file that ends in .npz expected")
    return args, given


@dataclass(frozen=True)
class Model:
    """A network to test, with what its checkpoint says of it (None: nothing); `chosen`: on the images of a test."""

    net: TwoStream
    path: str
    trial: int | None
    facts: dict[str, Any]
    chosen: bool = False


def load_model(path: str) -> Model:
    """A checkpoint of this project, or one of the published AGW or CGRNet code, named as what it is."""
    content = load_file(path, "--resume")
    if is_own(content) or not foreign.is_foreign(content):
        content = load_checkpoint(path)
        net = network_of(content, path)
        trial = content["trial"] if DATASETS[content["args"]["dataset"]].splits > 1 else None
        facts = {name: content["args"][name] for name in FROM_CHECKPOINT}
        return Model(net, path, trial, facts, chosen="optimiser" not in content)
    net, facts, report = foreign.load(content, path)
    print("\n".join(report))
    return Model(net, path, None, facts)


def reconcile(args: argparse.Namespace, given: set[str], model: Model) -> None:
    """Take from the checkpoint what the command line does not say; raises `UserError` where the two contradict."""
    for name in FROM_CHECKPOINT:
        if name not in model.facts:
            if name == "dataset" and name not in given:
                raise UserError(f"--resume {model.path}: does not say which data set it was trained on; give --dataset")
            continue
        if name in given and getattr(args, name) != model.facts[name]:
            raise UserError(f"--{name} {getattr(args, name)}: the checkpoint {model.path} has {name} {model.facts[name]}; leave "
                            "the flag out, or name other checkpoints")
        setattr(args, name, model.facts[name])


def trial_of(args: argparse.Namespace, given: set[str], model: Model) -> int:
    """The split to test a model on; raises `UserError` rather than test it on persons that it was trained on."""
    if model.trial is None:
        if "trial" not in given and DATASETS[args.dataset].splits > 1:
            raise UserError(f"--resume {model.path}: does not say which trial it was trained on; give that with --trial")
        return args.trial
    if "trial" not in given or args.trial == model.trial or args.force_trial:
        return args.trial if "trial" in given else model.trial
    raise UserError(f"--trial {args.trial}: the checkpoint {model.path} was trained on trial {model.trial}, whose training persons "
                    f"are among the test persons of trial {args.trial}; leave --trial out (--force-trial tests all the same)")


def searches(args: argparse.Namespace, trials: list[int]) -> list[Protocol]:
    """The protocols that the arguments name."""
    return DATASETS[args.dataset].protocols(args.data_path, direction=args.direction, mode=args.mode, shot=args.shot,
                                            gallery=args.gallery, trials=trials)


def main() -> None:
    """Test from the arguments of the command line."""
    args, given = parse_arguments()
    if args.compare:
        print("\n".join(results.compare(args.compare)))
        return
    device = choose_device(args.gpu)
    prepare(device)
    paths = checkpoints(args)
    make_folder(args.out or results.FOLDER, "--out")
    if args.save_features:
        make_folder(Path(args.save_features).parent, "--save-features")
    trials, protocols, first, forced, warned = [], [], None, {}, False
    for number, path in enumerate(paths, 1):
        model = load_model(path)
        todo = searches_for(args, given, model, number if len(paths) > 1 else None)
        if model.chosen and not warned:
            warned = True
            warn_of_best(path)
        if model.trial not in (None, todo[0].trial):
            forced[todo[0].trial] = model.trial
            warn(f"--force-trial: {path} was trained on trial {model.trial}, whose training persons are among the test persons of "
                 f"trial {todo[0].trial}; these scores say nothing of persons that it does not know")
        taken = search_features(model.net.to(device, memory_format=torch.channels_last), todo, how(args, device))
        trials += [{"trial": p.trial, **{f: score(taken, p, f, args.rerank != "none") for f in FEATURES},
                    "counts": results.count(p)} for p in todo]
        protocols += todo
        first = first or (taken, todo[0])
    warn_of_surprises(args, protocols)
    record = {"format": results.FORMAT, "protocol": results.describe_protocol(protocols, args.data_path),
              "extras": extras(args, forced, len(paths)),
              "checkpoint": {"method": args.method, "arch": args.arch, "files": [Path(path).name for path in paths],
                             "sha256": [sha256(Path(path)) for path in paths]},
              "image_size": [args.img_h, args.img_w], "trials": trials, **results.summarise(trials)}
    print("\n".join(results.lines(record)))
    write(args, "trial" in given, record, *first)


def checkpoints(args: argparse.Namespace) -> list[str]:
    """The files to test, one or one for each trial; raises `UserError` if one is not there or cannot name its results."""
    paths = [args.resume.replace("{}", str(t)) for t in range(1, TRIALS + 1)] if "{}" in args.resume else [args.resume]
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"--resume {path}: no such file; name a checkpoint" + " for every trial" * (len(paths) > 1))
    length = len(os.fsencode(Path(args.resume).stem))
    if not args.out and length > LONGEST:
        raise UserError(f"--resume {args.resume}: a name of {length} bytes found, {LONGEST} at most expected to call the results "
                        "by; choose a folder for them with --out")
    return paths


def searches_for(args: argparse.Namespace, given: set[str], model: Model, place: int | None) -> list[Protocol]:
    """What to test a model on, the n-th of ten or the only one (None); raises `UserError` where flags contradict it."""
    reconcile(args, given, model)
    resolve_arguments(args)
    several = DATASETS[args.dataset].splits > 1
    if args.force_trial and not several:
        raise UserError(f"--force-trial tests on another split of RegDB, but the data set is {args.dataset}, which has one; leave "
                        "it out")
    if place:
        require_trial(args, given, model, place)
        given.update(model.facts)  # the other models must be of the same kind
    return searches(args, [place or trial_of(args, given, model)] if several else list(range(TRIALS)))


def extras(args: argparse.Namespace, forced: dict[int, int], models: int) -> list[str]:
    """What was done beyond the protocol, in words; forced: trials tested on, and the other ones of those models' training."""
    words = ["flip"] * args.flip + ["k-reciprocal re-ranking"] * (args.rerank == "k-reciprocal")
    if forced and models == 1:
        words += [f"trained on trial {trial}" for trial in forced.values()]
    elif forced:
        tested, trained = (", ".join(map(str, numbers)) for numbers in (forced, forced.values()))
        words.append(f"trial {tested} trained on trial {trained}")
    return words


def write(args: argparse.Namespace, named: bool, record: dict[str, Any], taken: dict[str, Any], protocol: Protocol) -> None:
    """Write what was found, and the features and figures that were asked for; named: whether the user gave the trial."""
    if args.save_features:
        save_features(Path(args.save_features), taken, protocol)
    if args.out:
        import figures  # Matplotlib takes a second to load
        results.write(record, Path(args.out))
        figures.draw(Path(args.out), record, taken, protocol)
    else:
        path = results.default_path(args.resume, record, named)
        write_json(path, record)
        print(f"results: {path}")


def warn_of_surprises(args: argparse.Namespace, protocols: list[Protocol]) -> None:
    """Warn of what is legal but surely unintended, of all searches once."""
    for line in dict.fromkeys(line for search in protocols for line in surprises(args.dataset, args.data_path, search=search)):
        warn(line)


def require_trial(args: argparse.Namespace, given: set[str], model: Model, number: int) -> None:
    """Raise `UserError` unless the file of the n-th trial was trained on it."""
    if DATASETS[args.dataset].splits == 1:
        raise UserError(f"--resume {args.resume}: {{}} stands for the ten trials of RegDB, but the data set is {args.dataset}")
    if "trial" in given:
        raise UserError(f"--trial {args.trial}: --resume {args.resume} names all ten trials; leave one of them out")
    if model.trial not in (None, number) and not args.force_trial:
        raise UserError(f"--resume {model.path}: trained on trial {model.trial}, trial {number} expected by its place; rename the "
                        "file (--force-trial tests all the same)")


def how(args: argparse.Namespace, device: torch.device) -> Extraction:
    """How images become features."""
    bf16 = use_bf16(device, args.amp, args.img_w)
    return Extraction(args.img_h, args.img_w, args.test_batch, args.workers, device, bf16, args.flip, silent=False)


def save_features(path: Path, taken: dict[str, Any], protocol: Protocol) -> None:
    """Write both features of query and gallery with pids, camids and paths, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for side, images in (("query", protocol.query), ("gallery", protocol.gallery)):
        arrays[f"{side}_feats"] = side_features(taken, images, "bnneck")
        arrays[f"{side}_feats_pool"] = side_features(taken, images, "pool")
        arrays |= {f"{side}_pids": images.pids, f"{side}_camids": images.camids, f"{side}_paths": np.array(images.paths)}
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)


if __name__ == "__main__":
    run(main)
