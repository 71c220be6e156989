"""What each part of a method is worth: rows trained from several seeds, differences to the first row.

    python -m tools.ablation base cgrnet "own stage 1" --seeds 0 1 2 3 4 --json runs.jsonl [flags of train.py]
    python -m tools.ablation --json runs.jsonl          only the table of what the file holds

Each run is train.py's own, of the same seed. Runs that the file holds are not run again.
"""
from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import options
from checkpoint import pretrained_weights
from data_loader import AUGMENTATIONS, IdentitySampler, TrainBatches, TrainImages, load_train_images
from data_manager import DATASETS
from datasets.types import EVERY, MODALITIES, ImageSpec, Search, TrainSplit, View
from devices import choose_device, prepare, seed_everything, use_bf16
from engine import (Extraction, build_optimiser, learning_rate_factor, score, search_features,
                    set_learning_rate, train_steps)
from loss import Criterion
from model import METHODS, STRONG, CGRNet, Loss, Method, TwoStream, build_network, override
from results import FEATURES
from utils import Parser, UserError, integer, make_folder, run

BASE, AGW, CGRNET = (METHODS[name] for name in ("base", "agw", "cgrnet"))
DOUBLE = {name: CGRNET.losses[name] for name in ("id", "triplet")}
OWN = replace(BASE, losses=DOUBLE, own_stages=1)
SIMILARITY = override(CGRNET, ["graph=None"])
GRAPH = replace(BASE, network=CGRNet, losses=DOUBLE, parts={"similarity": None, "graph": "normalised"})
GAMMAS, OWN_STAGES, STAGE_1 = r".*gamma$", r"streams\.\w+\.layer\d", r"shared\.layer1"  # of parameters
CONSTANT = Loss(1.0, {"constant_weights": True})
ADDED = {name: ("standard", name) for name in AUGMENTATIONS if name != "standard"} | {"strong": STRONG}


@dataclass(frozen=True)
class Row:
    """What one row trains: a method, and what no method says.

    relation: the one of the graph's three gammas that learns, the others stay at 0; None: all learn.
    rates: factors on the learning rate of parameters, by a pattern of their names; others have train.py's.
    """

    method: Method
    relation: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def set_up(self, net: TwoStream, optimiser: torch.optim.Optimizer, lr: float) -> None:
        """Keep the gammas of other relations at 0, and give parameters their rates."""
        if self.relation is not None:
            alone = torch.zeros_like(net.graph.gamma)
            alone[self.relation] = 1
            net.graph.gamma.register_hook(lambda gradient: gradient * alone)
        for pattern, factor in self.rates.items():
            chosen = [each for name, each in net.named_parameters() if re.match(pattern, name)]
            regroup(optimiser, chosen, lr * factor)


def regroup(optimiser: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], lr: float) -> None:
    """Take some parameters out of their groups into one of their own, with that first rate."""
    chosen = set(parameters)
    for group in optimiser.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in chosen]
    optimiser.param_groups[:] = [group for group in optimiser.param_groups if group["params"]]
    optimiser.add_param_group({"params": parameters, "lr": lr, "initial_lr": lr})


ROWS = {name: Row(method) for name, method in METHODS.items()} | {
    "base, triplet x 2": Row(replace(BASE, losses=DOUBLE)),
    "base, triplet x 2, stage 1 at the full rate": Row(replace(BASE, losses=DOUBLE), rates={STAGE_1: 1.0}),
    "base, own stage 1": Row(replace(BASE, own_stages=1)),
    "own stage 1": Row(OWN),
    "own stage 1 at no rate": Row(OWN, rates={OWN_STAGES: 0.0}),
    "own stage 1 at the full rate": Row(OWN, rates={OWN_STAGES: 1.0}),
    "own stage 1, similarity without its loss": Row(replace(SIMILARITY, losses=DOUBLE)),
    "own stage 1, similarity": Row(SIMILARITY),
    "shared stage 1, graph": Row(GRAPH),
    "shared stage 1, local to local alone": Row(GRAPH, relation=0),
    "shared stage 1, global to local alone": Row(GRAPH, relation=1),
    "shared stage 1, local to global alone": Row(GRAPH, relation=2),
    "cgrnet, energy": Row(override(CGRNET, ["similarity=energy"])),
    "cgrnet, plain": Row(override(CGRNET, ["graph=plain"])),
    "cgrnet, energy and plain": Row(override(CGRNET, ["similarity=energy", "graph=plain"])),
    "cgrnet, gammas at a fiftieth": Row(CGRNET, rates={GAMMAS: 1 / 50}),
    "cgrnet, gammas at the full rate": Row(CGRNET, rates={GAMMAS: 1.0}),
    "agw, average pooling": Row(replace(AGW, pooling="average")),
    "agw, no non-local": Row(override(AGW, ["non_local=None"])),
    "agw, batch-hard triplet": Row(replace(AGW, losses=BASE.losses)),
    "agw, constant weights": Row(replace(AGW, losses={"id": Loss(), "weighted_triplet": CONSTANT})),
    "caj, constant weights": Row(replace(METHODS["caj"], losses={"id": Loss(), "squared_triplet": CONSTANT})),
    "strong, standard augmentation": Row(replace(METHODS["strong"], views=BASE.views)),
    "base, GeM": Row(replace(BASE, pooling="gem")),
    "base, non-local": Row(replace(BASE, network=AGW.network, parts=AGW.parts)),
    "base, weighted triplet": Row(replace(BASE, losses={"id": Loss(), "weighted_triplet": Loss()})),
} | {f"base, {name}": Row(replace(BASE, views={modality: View(modality, augment) for modality in MODALITIES}))
     for name, augment in ADDED.items()}
FIGURES = ("rank-1", "mAP")
COLUMNS = [f"{kind}/{name}" for kind in FEATURES for name in FIGURES]


def make_parser() -> Parser:
    """The flags of train.py, and which rows to run from which seeds."""
    parser = options.train_parser()
    parser.add_argument("rows", nargs="*", choices=(*ROWS, []), metavar="ROW", help=f"of: {'; '.join(ROWS)}")
    parser.add_argument("--seeds", nargs="+", type=integer(0), default=[0], metavar="SEED",
                        help="one run each")
    parser.add_argument("--against", choices=ROWS, metavar="ROW",
                        help="the row whose difference to each other is shown (default: the first)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the runs, one line each")
    return parser


def parse_arguments(parser: Parser, words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line; raises `UserError` for those that say nothing of rows."""
    args = parser.parse_args(words)
    for name in ("init", "resume", "seed", "method"):
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"{parser.flag(name)}: rows from several seeds have their own; leave it out")
    if args.recipe != parser.get_default("recipe"):
        raise UserError(f"--recipe {args.recipe}: rows of many methods have no recipe in common; "
                        "give its flags by themselves (train.py --help says them)")
    if args.trial == EVERY:
        raise UserError(f"--trial {EVERY}: a row is one model; give the number of a split")
    return options.resolve(args)


def require_same_flags(parser: Parser, args: argparse.Namespace, runs: dict[tuple[str, int], dict]) -> None:
    """Raise `UserError` where the file holds runs of other flags, which one table must not mix."""
    of_data = {flag.dest for data in DATASETS.values() for flag in data.flags}
    told = (parser.fixed | of_data | {"epochs", "amp", "data_path", "direction"}) & vars(args).keys()
    for command in {record["command"] for record in runs.values()}:
        theirs = options.resolve(parser.parse_args(["--json", str(args.json), *shlex.split(command)]))
        for name in sorted(told - {"seed", "method"}):
            found, asked = getattr(theirs, name), getattr(args, name)
            if found != asked:
                raise UserError(f"--json {args.json}: holds runs of {parser.flag(name)} {found}, {asked} "
                                "asked for; name another file")


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = make_parser()
    args = parse_arguments(parser, words)
    known = read_runs(args.json)
    if args.rows:
        require_same_flags(parser, args, known)
    missing = [(row, seed) for seed in args.seeds for row in args.rows if (row, seed) not in known]
    if missing:
        make_folder(args.json.parent, "--json")
        device = choose_device(args.gpu)
        prepare(device)
        data = DATASETS[args.dataset]
        searches = data.searches(args.data_path, direction=args.direction, trials=data.trials(args.trial),
                                 **data.keywords("searches", vars(args)))
        split = data.train_split(args.data_path, **data.keywords("train_split", vars(args)))
        images = load_train_images(split, args.data_path, ImageSpec.from_arguments(vars(args)), args.workers,
                                   folder=args.arrays, silent=True)
    for row, seed in missing:
        begun = time.perf_counter()
        figures = train(row, seed, args, split, images, searches, device)
        record = {"row": row, "seed": seed, "seconds": round(time.perf_counter() - begun), **figures}
        with open(args.json, "a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "command": shlex.join(words or sys.argv[1:])}) + "\n")
        print(json.dumps(record), flush=True)
    print("\n".join(table(read_runs(args.json), args.against)))


def read_runs(path: Path) -> dict[tuple[str, int], dict]:
    """The runs that a file holds, by row and seed; raises `UserError` for a file of something else."""
    lines, runs = path.read_text(encoding="utf-8").splitlines() if path.exists() else [], {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            runs[record["row"], record["seed"]] = record
            if not all(isinstance(record[name], float | int) for name in COLUMNS) or not record["command"]:
                raise ValueError("no figures")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"--json {path}: line {number} is no run of tools.ablation "
                            f"({type(error).__name__}); take it out, or name another file") from None
    return runs


def train(row: str, seed: int, args: argparse.Namespace, split: TrainSplit, images: dict[str, TrainImages],
          searches: list[Search], device: torch.device) -> dict[str, float]:
    """Train a row from a seed as train.py does; its means over all trials, as test.py's, and its gammas."""
    weights, _ = pretrained_weights(args.pretrained, args.arch)
    seed_everything(seed)
    method = options.with_flags(ROWS[row].method, args)
    net = build_network(method, args.arch, len(split.pids), weights)
    net.to(device, memory_format=torch.channels_last)
    criterion = Criterion(net.method.losses, len(split.pids), net.dim).to(device)
    optimiser = build_optimiser(net, criterion, args.lr, weights is not None, args.optim)
    ROWS[row].set_up(net, optimiser, args.lr)
    sampler = IdentitySampler({m: split.labels(m) for m in MODALITIES}, args.batch_size, args.num_pos, seed)
    batches = TrainBatches(images, sampler, net.method.views, device, device.type == "cuda", seed)
    bf16 = use_bf16(device, args.amp, args.arch, ImageSpec.from_arguments(vars(args)))
    for epoch in range(args.epochs):
        set_learning_rate(optimiser, learning_rate_factor(epoch, args.epochs, args.schedule))
        for values in train_steps(net, criterion, batches, optimiser, epoch, 0, bf16):
            last = values
    settings = Extraction(ImageSpec.from_arguments(vars(args)), args.test_batch, args.workers, device)
    found = search_features(net, searches, settings)
    gammas = {name: value.tolist() for name, value in net.named_parameters() if name.endswith("gamma")}
    scores = {kind: [score(found, search, kind).headline() for search in searches] for kind in FEATURES}
    return {**{f"{kind}/{name}": round(100 * float(np.mean([each[name] for each in scores[kind]])), 2)
               for kind in FEATURES for name in FIGURES},
            "loss": float(last["loss"].detach()), "accuracy": float(last["accuracy"]), "gammas": gammas}


def table(runs: dict[tuple[str, int], dict], against: str | None = None) -> list[str]:
    """A Markdown table: mean ± standard error; mean paired difference to one row, the first of them if None
    [95 % interval]."""
    rows = list(dict.fromkeys(row for row, _ in runs))
    against = against or next(iter(rows), None)
    lines = ["| | seeds | " + " | ".join(COLUMNS) + " |", "| --- " * (2 + len(COLUMNS)) + "|"]
    for row in rows:
        seeds = [seed for name, seed in runs if name == row]
        cells = []
        for column in COLUMNS:
            values = np.array([runs[row, seed][column] for seed in seeds])
            pairs = [runs[row, seed][column] - runs[against, seed][column]
                     for seed in seeds if (against, seed) in runs]
            difference = f"; {interval(pairs)}" if row != against and pairs else ""
            cells.append(interval(values, "{0:.1f} ± {1:.1f}") + difference)
        lines.append(f"| {row} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def interval(values: np.ndarray | list[float], form: str = "{0:+.1f} [{2:+.1f}, {3:+.1f}]") -> str:
    """Mean, standard error and the ends of Student's 95 % interval of some values; of one, itself."""
    mean = np.mean(values)
    if len(values) == 1:
        return form.split()[0].format(mean)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return form.format(mean, error, mean - reach, mean + reach)


if __name__ == "__main__":
    run(main)
