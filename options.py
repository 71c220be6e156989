"""Every flag of train.py and test.py, declared once.

A value comes from the first of these that says it: the command line, the checkpoint, the recipe (or what the
method's authors published), the flag's own default.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbones import BACKBONES
from checkpoint import Checkpoint, load_checkpoint
from command_line import GPU, Parser, add_data_arguments, choices, filled, number
from data_loader import AUGMENTATIONS, COMBINED
from data_manager import DATASETS, add_dataset_flags, resolve_arguments
from datasets.types import View
from model import METHODS, Method, check_method, override
from results import FEATURES, SUM
from utils import UserError

# Defaults of other flags in one word, each open to its flag. `paper`: what the method's authors published.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "strong": {"optim": "sgd", "schedule": "cosine", "epochs": 120, "augment": "strong",
               "img_h": 384, "img_w": 192},
    "short": {"optim": "sgd", "schedule": "cosine", "epochs": 24, "augment": "standard",
              "img_h": 192, "img_w": 96},
    "own": {"arch": "mobilenet_v2", "optim": "adam", "lr": 0.0035, "schedule": "cosine", "epochs": None,
            "img_h": 192, "img_w": 96},
}
OWN_IMAGES, OWN_EPOCHS = 64_000, (5, 120)  # that `own` shows of the larger modality; fewest and most epochs
TRIPLETS = ("triplet", "hetero_center", "part_hetero_center")  # the losses whose margin --margin is
# What makes a model what it is: a checkpoint says it, and a flag that contradicts the checkpoint is an error.
FIXED = frozenset(("dataset", "method", "set", "arch", "img_h", "img_w", "range", "trial", "recipe", "lr",
                   "optim", "schedule", "batch_size", "num_pos", "margin", "augment", "pretrained", "init",
                   "seed", "sync_bn", "name"))
# What belongs to a machine or to one command, and never comes from a checkpoint.
OWN = frozenset(("resume", "overwrite", "dry_run", "gpu", "workers", "test_batch", "data_device", "compile"))
# Arguments of training that a record of a test tells: the models of one method's seeds agree in them.
SETTINGS = ("recipe", "lr", "optim", "epochs", "schedule", "batch_size", "num_pos", "margin", "augment",
            "set", "pretrained", "img_h", "img_w", "amp", "sync_bn")
# What the name of a run tells where it is not the default, and how.
TOLD = {"arch": "{}", "size": "{}", "schedule": "{}", "epochs": "epochs_{}", "augment": "{}",
        "optim": "{}", "margin": "margin_{}", "pretrained": "pretrained_{}", "init": "init_{}",
        "amp": "amp_{}", "sync_bn": "sync_bn", "set": "{}", "range": "range_{}", "name": "{}"}


# ------------------------------------------------------------------------------------------------- the flags
def train_parser() -> Parser:
    """The flags of train.py."""
    parser = Parser(description="Train a model for visible-infrared person re-identification.")
    add_shared_arguments(parser, "train")
    add = parser.add_argument
    add("--overwrite", action="store_true", help="replace the files of an earlier run of this name")
    add("--dry-run", action="store_true", help="say what would run, take three steps for an estimate of time "
        "and memory, write a picture of a batch, and stop")
    add("--name", type=filled, metavar="TAG", help="a word to add to the name of the run")
    rows = {name: " ".join(f"{key} {value or 'by the number of images'}" for key, value in row.items())
            for name, row in RECIPES.items()}
    add("--recipe", choices=RECIPES, default="paper", help="defaults of other flags: "
        + "; ".join(f"{name}: {words or 'what the authors published'}" for name, words in rows.items()))
    add("--set", nargs="+", metavar="FIELD=VALUE", help="change fields of the method's row, such as "
        "graph=None own_stages=1 losses.triplet.weight=2 losses.triplet=hetero_center")
    rates = ", ".join(f"{row.lr} for {name}" for name, row in BACKBONES.items())
    add("--lr", type=number(1e-45, 1e38, float), help="learning rate of new layers, and a tenth of it of a "
        f"pretrained backbone (default: {rates})")
    add("--optim", choices=("sgd", "adam"), default="sgd", help="optimiser")
    add("--epochs", type=number(1), default=80, help="length")
    add("--schedule", choices=("step", "step-80", "cosine", "linear"), default="step",
        help="learning rate by epochs; step: the paper's, made for 80; step-80: DEEN's, for 151; "
        "cosine, linear: for any number")
    add("--batch-size", type=number(2), default=8, metavar="N", help="identities a batch and process")
    add("--num_pos", type=number(1), default=4, metavar="P",
        help="visible, and infrared, images of each identity in a batch")
    add("--margin", type=number(0, kind=float), help="margin of the triplet loss (default: the method's own)")
    add("--augment", type=choices([*AUGMENTATIONS, *COMBINED]), metavar="NAME[,NAME...]",
        help="augmentations of every view, of "
        f"{', '.join([*AUGMENTATIONS, *COMBINED])} (default: the method's own)")
    add("--pretrained", type=filled, default="imagenet", metavar="imagenet|none|FILE",
        help="first weights of the backbone; FILE: a torchvision state dict")
    add("--init", type=filled, metavar="FILE", help="take the weights of a checkpoint, nothing else of it")
    add("--seed", type=number(0, 2 ** 31 - 1), default=0, help="seed of everything that is drawn")
    add("--eval-every", type=number(1), default=2, metavar="N", help="epochs between evaluations")
    add("--save_epoch", type=number(1), default=20, metavar="N", help="epochs between epoch_N files")
    add("--keep", type=number(1), metavar="N", help="keep only the newest N epoch_N files")
    add("--model_path", type=filled, default="save_model/", metavar="DIR", help="folder of checkpoints")
    add("--log_path", type=filled, default="log/", metavar="DIR", help="folder of text and JSON logs")
    add("--vis_log_path", type=filled, default="log/vis_log/", metavar="DIR",
        help="folder of TensorBoard logs")
    add("--print-freq", type=number(1), default=50, metavar="N", help="steps between lines of progress")
    add("--data-device", choices=("auto", "gpu", "cpu"), default="auto", help="where training pixels live; "
        "auto: on the GPU if they take at most half of its free memory")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--sync-bn", action="store_true", help="several GPUs: batch statistics over all of them")
    return parser


def test_parser() -> Parser:
    """The flags of test.py."""
    parser = Parser(description="Test a model for visible-infrared person re-identification.")
    add_shared_arguments(parser, "test")
    parser.set_defaults(amp="off", dataset=None, trial=None)  # others check their numbers against float32
    add = parser.add_argument
    add("--flip", action="store_true", help="add the features of the mirror image")
    add("--feature", choices=(*FEATURES, SUM), help="score this feature alone, sum: the sum of both cosines "
        "(default: either feature)")
    add("--rerank", choices=("none", "k-reciprocal"), default="none", help="re-rank the distances")
    add("--save-features", type=filled, metavar="FILE.npz", help="write the features of the first trial")
    add("--out", type=filled, metavar="DIR",
        help="write results.json, results.csv and figures there, not one JSON file into results")
    add("--compare", nargs="+", metavar="results.json", help="print results of one protocol side by side")
    return parser


def add_shared_arguments(parser: Parser, script: str) -> None:
    """Declare what both scripts take, and the flags of the data sets."""
    add_data_arguments(parser)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="sysu", help="data set")
    paths = " or ".join(data.path for data in DATASETS.values() if data.path)
    add("--data-path", type=filled, metavar="DIR", help=f"folder of the data set (default: {paths})")
    add("--method", choices=METHODS, default="cgrnet", help="network and losses")
    add("--arch", choices=BACKBONES, default="resnet50", help="backbone")
    add("--resume", "-r", type=filled, metavar="PATH", help="checkpoint to go on from (auto: that of the run "
        "of these flags, if there is one)" if script == "train" else "checkpoint to test")
    add("--gpu", **GPU)
    add("--amp", choices=("auto", "bf16", "off"), default="auto",
        help="bfloat16 autocast; auto: where the device has it and the backbone gains by it")
    add("--test-batch", type=number(1), default=64, metavar="N", help="images a step in evaluation")
    directions = ", ".join(f"{data.direction} for {name}" for name, data in DATASETS.items())
    add("--direction", choices=("i2v", "v2i"),
        help=f"infrared query in visible gallery, or the reverse (default: {directions})")
    add_dataset_flags(parser, script)


# ------------------------------------------------------------------------------------------------- the values
def parse_train(words: Sequence[str] | None) -> tuple[argparse.Namespace, Checkpoint | None]:
    """The arguments of train.py, and the checkpoint to go on from.

    Raises `UserError` where a flag contradicts the checkpoint, another flag, or the data set.
    """
    parser = train_parser()
    args = parser.parse_args(words)
    parser.set_defaults(**recipe(args))
    args = resolve(parser.parse_args(words))
    if args.epochs is None and args.resume in (None, "auto"):
        args.epochs = own_length(args)
    if args.resume == "auto":
        last = Path(args.model_path) / f"{run_name(args)}_last.t"
        args.resume = str(last) if last.exists() else None
        args.overwrite = True
    if args.resume is None:
        if args.init and args.pretrained not in ("none", "imagenet"):
            raise UserError(f"--pretrained {args.pretrained} and --init {args.init} both say which weights "
                            "to begin with; give one")
        return args, None
    saved = load_checkpoint(args.resume)
    resume, args = args.resume, parse_with(parser, words, saved.args, args.resume)
    args.resume, args.model_path = resume, str(Path(resume).parent)
    if args.epochs < saved.epoch:
        raise UserError(f"--epochs {args.epochs}: the checkpoint {resume} has {saved.epoch} epochs behind "
                        "it; give at least as many")
    return resolve(args), saved


def parse_with(parser: Parser, words: Sequence[str] | None, saved: Mapping[str, Any],
               path: str) -> argparse.Namespace:
    """The arguments, with what the command line leaves open taken from a checkpoint's.

    Raises `UserError` where the two contradict each other in what a checkpoint fixes.
    """
    known = vars(parser.parse_args([])).keys() - OWN
    parser.set_defaults(**{name: value for name, value in saved.items() if name in known})
    args = parser.parse_args(words)
    for name in sorted(FIXED & saved.keys() & known):
        own, other = getattr(args, name), saved[name]
        if own != other:
            flag = parser.flag(name)
            raise UserError(f"{flag} {shown(own)}: the checkpoint {path} was trained with {flag} "
                            f"{shown(other)}; leave the flag out, or use another checkpoint")
    return args


def shown(value: Any) -> str:
    """A value as the command line says it."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)[:40]


def recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The defaults of the recipe, or, for `paper`, of the method's authors.

    A method keeps augmentations of its own, and a published rate is one for the published backbone.
    """
    method = METHODS[args.method]
    row = dict(method.recipe if args.recipe == "paper" else RECIPES[args.recipe])
    if any(view.augment != View.augment for view in method.views.values()):
        row.pop("augment", None)
    if args.recipe == "paper" and args.arch != "resnet50":
        row.pop("lr", None)
    return row


def own_length(args: argparse.Namespace) -> int:
    """The epochs of the recipe `own`: as many as show a number of images, within bounds."""
    data = DATASETS[args.dataset]
    split = data.train_split(args.data_path, **data.keywords("train_split", vars(args)))
    least, most = OWN_EPOCHS
    return min(max(round(OWN_IMAGES / max(map(len, split.sides))), least), most)


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the backbone and the data set.

    Raises `UserError` for flags that belong to other data sets, or that contradict each other.
    """
    if getattr(args, "lr", 0) is None:
        args.lr = BACKBONES[args.arch].lr
    return resolve_arguments(args)


def method_of(args: argparse.Namespace) -> Method:
    """The method with what the command line changes of its row."""
    check_method(args.method, METHODS[args.method])
    method = override(METHODS[args.method], args.set or ())
    if args.margin is not None:
        method = override(method, [f"losses.{name}.margin={args.margin}" for name in TRIPLETS
                                   if name in method.losses])
    if args.augment is not None:
        names = tuple(args.augment.split(","))
        method = replace(method,
                         views={name: replace(view, augment=names) for name, view in method.views.items()})
    return method


def run_name(args: argparse.Namespace) -> str:
    """The name of a run, which tells every flag that makes the model what it is and is not the default."""
    words = [args.dataset, args.method, f"p{args.num_pos}_n{args.batch_size}_lr_{args.lr}_seed_{args.seed}"]
    told, usual = ({**vars(values), "size": f"{values.img_h}x{values.img_w}"}
                   for values in (args, train_parser().parse_args([])))
    words += [form.format(as_word(name, told[name])) for name, form in TOLD.items()
              if told[name] != usual[name]]
    return "_".join(words + ([f"trial_{args.trial}"] if DATASETS[args.dataset].splits > 1 else []))


def as_word(name: str, value: Any) -> str:
    """The value of an argument as a part of a file's name: of a file its stem."""
    if name in ("init", "pretrained"):
        return Path(value).stem
    text = "_".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace(",", "-").replace("=", "-").replace("/", "-")
