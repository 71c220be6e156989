"""Every flag of train.py and test.py, declared once, and which of them a checkpoint fixes.

A flag is `fixed` where it makes a run what it is: a checkpoint says it, and the command line cannot
contradict. It is of the `machine` where a run may go on elsewhere with another value: a checkpoint does not
say it. All others come from the checkpoint unless the command line says otherwise.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backbones import BACKBONES
from data_loader import AUGMENTATIONS, COMBINED
from data_manager import DATASETS, add_dataset_flags, resolve_arguments
from datasets.types import View
from model import METHODS, Method
from results import FEATURES, SUM
from utils import GPU, Parser, UserError, add_data_arguments, choices, filled, integer, not_negative, positive

# Defaults of other flags in one word, each open to its flag. `paper`: the declared ones.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "strong": {"optim": "sgd", "schedule": "cosine", "epochs": 120, "augment": "strong",
               "img_h": 384, "img_w": 192},
    "short": {"optim": "sgd", "schedule": "cosine", "epochs": 24, "augment": "standard",
              "img_h": 192, "img_w": 96},
}

# Arguments of training that a result tells: records that agree in them are those of one method's seeds.
SETTINGS = ("recipe", "lr", "optim", "epochs", "schedule", "batch_size", "num_pos", "margin", "augment",
            "pretrained", "img_h", "img_w", "amp", "sync_bn")


def train_parser() -> Parser:
    """The flags of train.py."""
    parser = Parser(description="Train a model for visible-infrared person re-identification.")
    add_shared_arguments(parser, "train")
    parser.add_argument("--test-only", action="store_true", machine=True, help="evaluate --resume and stop")
    rows = {name: " ".join(f"{key} {value}" for key, value in row.items()) for name, row in RECIPES.items()}
    parser.add_argument("--recipe", choices=RECIPES, default="paper", fixed=True,
                        help="defaults of other flags: "
                        + "; ".join(f"{name}: {words or 'those said here'}" for name, words in rows.items()))
    rates = ", ".join(f"{row.lr} for {name}" for name, row in BACKBONES.items())
    parser.add_argument("--lr", type=positive, fixed=True,
                        help="learning rate of new layers, and a tenth of it of a pretrained backbone "
                        f"(default: {rates})")
    parser.add_argument("--optim", choices=("sgd", "adam"), default="sgd", fixed=True, help="optimiser")
    parser.add_argument("--epochs", type=integer(1), default=80, help="length")
    parser.add_argument("--schedule", choices=("step", "cosine"), default="step", fixed=True,
                        help="learning rate by epochs; step: the paper's, made for 80 epochs; "
                        "cosine: for any number")
    parser.add_argument("--batch-size", type=integer(2), default=8, metavar="N", fixed=True,
                        help="identities a batch and process")
    parser.add_argument("--num_pos", type=integer(1), default=4, metavar="P", fixed=True,
                        help="visible, and infrared, images of each identity in a batch")
    parser.add_argument("--margin", type=not_negative, fixed=True,
                        help="margin of the triplet loss (default: the method's own)")
    parser.add_argument("--augment", type=choices([*AUGMENTATIONS, *COMBINED]), metavar="NAME[,NAME...]",
                        fixed=True, help="augmentations of every view, of "
                        f"{', '.join([*AUGMENTATIONS, *COMBINED])} (default: the method's own)")
    parser.add_argument("--pretrained", type=filled, default="imagenet", metavar="imagenet|none|FILE",
                        fixed=True, help="first weights of the backbone; FILE: a torchvision state dict")
    parser.add_argument("--init", type=filled, metavar="FILE", fixed=True,
                        help="take the weights of a checkpoint, and nothing else of it")
    parser.add_argument("--seed", type=integer(0, 2 ** 31 - 1), default=0, fixed=True,
                        help="seed of everything that is drawn")
    parser.add_argument("--eval-every", type=integer(1), default=2, metavar="N",
                        help="epochs between evaluations")
    parser.add_argument("--save_epoch", type=integer(1), default=20, metavar="N",
                        help="epochs between epoch_N files")
    parser.add_argument("--keep", type=integer(1), metavar="N", help="keep only the newest N epoch_N files")
    parser.add_argument("--model_path", type=filled, default="save_model/", metavar="DIR",
                        help="folder of checkpoints")
    parser.add_argument("--log_path", type=filled, default="log/", metavar="DIR",
                        help="folder of text and JSON logs")
    parser.add_argument("--vis_log_path", type=filled, default="log/vis_log/", metavar="DIR",
                        help="folder of TensorBoard logs")
    parser.add_argument("--print-freq", type=integer(1), default=50, metavar="N",
                        help="steps between lines of progress")
    parser.add_argument("--data-device", choices=("auto", "gpu", "cpu"), default="auto", machine=True,
                        help="where training pixels live; "
                        "auto: on the GPU if they take at most half of its free memory")
    parser.add_argument("--compile", action="store_true", machine=True, help="torch.compile the network")
    parser.add_argument("--sync-bn", action="store_true", fixed=True,
                        help="several GPUs: batch statistics over all of them")
    return parser


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the backbone and the data set; refuse flags that belong to other data sets."""
    if args.lr is None:
        args.lr = BACKBONES[args.arch].lr
    return resolve_arguments(args)


def test_parser() -> Parser:
    """The flags of test.py."""
    parser = Parser(description="Test a model for visible-infrared person re-identification.")
    add_shared_arguments(parser, "test")
    parser.set_defaults(amp="off")  # others check their numbers against these
    parser.add_argument("--flip", action="store_true", help="add the features of the mirror image")
    parser.add_argument("--feature", choices=(*FEATURES, SUM),
                        help="score this feature alone, sum: the sum of both cosines "
                        "(default: either feature)")
    parser.add_argument("--rerank", choices=("none", "k-reciprocal"), default="none",
                        help="re-rank the distances")
    parser.add_argument("--save-features", type=filled, metavar="FILE.npz",
                        help="write the features of the first trial")
    parser.add_argument("--out", type=filled, metavar="DIR",
                        help="write results.json, results.csv and figures there, "
                        "not one JSON file into results")
    parser.add_argument("--compare", nargs="+", metavar="results.json",
                        help="print results of one protocol side by side")
    return parser


def add_shared_arguments(parser: Parser, script: str) -> None:
    """Declare what both scripts take, the flags of the data sets among it."""
    add_data_arguments(parser)
    parser.add_argument("--dataset", choices=DATASETS, default="sysu", fixed=True, help="data set")
    parser.add_argument("--data-path", type=filled, metavar="DIR",
                        help="folder of the data set (default: "
                             f"{' or '.join(data.path for data in DATASETS.values() if data.path)})")
    parser.add_argument("--method", choices=METHODS, default="cgrnet", fixed=True, help="network and losses")
    parser.add_argument("--arch", choices=BACKBONES, default="resnet50", fixed=True, help="backbone")
    parser.add_argument("--resume", "-r", type=filled, metavar="PATH", machine=True,
                        help="checkpoint to go on from, or to test")
    parser.add_argument("--gpu", **GPU, machine=True)
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), default="auto",
                        help="bfloat16 autocast; auto: where the device has it and the backbone gains by it")
    parser.add_argument("--test-batch", type=integer(1), default=64, metavar="N", machine=True,
                        help="images a step in evaluation")
    directions = ", ".join(f"{data.direction} for {name}" for name, data in DATASETS.items())
    parser.add_argument("--direction", choices=("i2v", "v2i"),
                        help=f"infrared query in visible gallery, or the reverse (default: {directions})")
    add_dataset_flags(parser, script)


def apply_recipe(args: argparse.Namespace, given: set[str]) -> None:
    """Take from the recipe what the command line does not say; a method keeps augmentations of its own."""
    own = any(view.augment != View.augment for view in METHODS[args.method].views.values())
    for name, value in RECIPES[args.recipe].items():
        if name not in given and not (own and name == "augment"):
            setattr(args, name, value)


def with_flags(method: Method, args: argparse.Namespace) -> Method:
    """A method with the parameters that the command line sets."""
    if args.margin is not None:
        losses = {name: replace(loss, parameters={**loss.parameters, "margin": args.margin})
                  if "margin" in loss.parameters else loss for name, loss in method.losses.items()}
        method = replace(method, losses=losses)
    if args.augment is not None:
        names = tuple(args.augment.split(","))
        method = replace(method,
                         views={name: replace(view, augment=names) for name, view in method.views.items()})
    return method


def reconcile(parser: Parser, args: argparse.Namespace, given: set[str], saved: Mapping[str, Any],
              path: str) -> None:
    """Take from a checkpoint's arguments what the command line does not say.

    Raises `UserError` where the two contradict in what is fixed, or for what no flag could say.
    """
    for name, own in vars(args).copy().items():
        if name not in saved or name in parser.machine:
            continue
        flag, value = parser.flag(name), saved[name]
        if not parser.allows(name, value):
            raise UserError(f"--resume {path}: {flag} {str(value)[:40]} found in it, a value of that flag "
                            "expected; use a file that train.py wrote")
        if name not in given:
            setattr(args, name, value)
        elif own != value and name in parser.fixed:
            raise UserError(f"{flag} {own}: the checkpoint {path} was trained with {flag} {value}; leave the "
                            "flag out, or use another checkpoint")
