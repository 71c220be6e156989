"""Files of weights, ours and other code's: written whole or not at all, read without running what they hold.

Files of other code are known by their names of weights, see published.py.
"""
from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones import BACKBONES, fetch_imagenet, whole_state, weight_shapes
from data_manager import DATASETS
from model import METHODS, TwoStream, build_network, override
from published import find_foreign
from utils import UserError, as_user_error, atomic_path, one_line, sha256, warn

FORMAT = 1
WRAPPERS = ("net", "state_dict", "model", "model_state_dict")  # keys that state dicts are saved under
COUNT = "num_batches_tracked"  # BatchNorm's count of batches, which nothing reads


@dataclass
class Checkpoint:
    """What a file of train.py holds.

    name: the run's, with which its files begin; trial: the data set's split; epoch: the next one; best:
    scores of the best epoch so far; fingerprint: of the training images; processes: that train together;
    criterion: what losses learn; optimiser: None in a file of weights alone (`best`).
    """

    net: dict[str, Tensor]
    args: dict[str, Any]
    num_classes: int
    name: str = ""
    epoch: int = 0
    trial: int = 1
    best: dict[str, float] = field(default_factory=lambda: {"rank-1": -1.0, "mAP": 0.0, "epoch": -1})
    fingerprint: str = ""
    processes: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = "unknown"
    first_weights: str = ""
    criterion: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Any] | None = None

    def network(self, path: str | Path, flag: str = "--resume") -> TwoStream:
        """The network; raises `UserError` if the weights do not fit the method and backbone in the file."""
        for name, known in (("method", METHODS), ("arch", BACKBONES)):
            if self.args.get(name) not in known:
                raise UserError(f"{flag} {path}: {name} {str(self.args.get(name))[:40]!r} found in it, one "
                                f"of {', '.join(known)} expected; use a file that train.py wrote")
        name, arch = self.args["method"], self.args["arch"]
        method = override(METHODS[name], list(map(str, self.args.get("set") or ())))
        net = build_network(method, arch, self.num_classes)
        load_weights(net, self.net, {key: key for key in net.state_dict()}, (), f"{flag} {path}",
                     f"{name} on {arch}, {self.num_classes} classes")
        return net


# ------------------------------------------------------------------------------------------------------ files
def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all; raises `UserError` where the disk or the folder refuses it."""
    known = {name: value for name, value in vars(checkpoint).items() if value is not None}
    with as_user_error(f"{path}: cannot be written", "the previous checkpoint, if any, is intact; make room "
                       "or choose another --model_path"), atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **known}, temporary)


def load_file(path: str | Path, flag: str) -> Any:
    """Read a file of tensors, plain types and NumPy numbers and arrays, and refuse anything else unrun.

    Raises `UserError` naming the flag and the file.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder found, a file expected" if path.is_dir() else "no such file"
        raise UserError(f"{flag} {path}: {what}; name a checkpoint")
    try:
        with torch.serialization.safe_globals(numpy_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch and zipfile stumble in many ways
        raise UserError(f"{flag} {path}: {why_refused(path, error)}") from None


def why_refused(path: Path, error: Exception) -> str:
    """Say in words what a file that torch could not load holds."""
    if named := re.search(r"GLOBAL ([\w.]+)|([\w.]+) was not an allowed global", str(error)):
        return (f"refused, it refers to {named[1] or named[2]}, which could run code when loaded; tensors, "
                "plain types and NumPy arrays expected; use a file from a source you trust")
    cause = re.search(r"WeightsUnpickler error: (.*?)(?: Check the documentation|$)", one_line(error))
    reason = cause[1] if cause else f"{type(error).__name__}: {one_line(error)}"
    with open(path, "rb") as file:
        start = file.read(16)
    return (f"{path.stat().st_size} bytes that begin with {start!r} found, a whole checkpoint of tensors, "
            f"plain types and NumPy arrays of numbers expected ({reason[:160]}); use another file")


def numpy_globals() -> list[Any]:
    """What a pickled NumPy array or number (bool, integer, float) refers to, no more; NumPy 1 and 2."""
    reconstruct, scalar = np.zeros(0).__reduce__()[0], np.float64().__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in ("?", *np.typecodes["AllInteger"], *np.typecodes["Float"])}
    return [np.ndarray, np.dtype, *dtypes,
            *((function, f"numpy.{core}.multiarray.{function.__name__}")
              for core in ("core", "_core") for function in (reconstruct, scalar))]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read one of this project's checkpoints to go on from; raises `UserError` if it is none."""
    content = load_file(path, "--resume")
    checkpoint = as_checkpoint(content, path)
    if content.get("step"):  # of earlier code
        warn(f"--resume {path}: written after {content['step']} steps of epoch {checkpoint.epoch}, which "
             "begins again")
    return checkpoint


def as_checkpoint(content: Any, path: str | Path, flag: str = "--resume") -> Checkpoint:
    """A file's content as a checkpoint; raises `UserError` if it is none or one of a later version."""
    if not is_own(content) or content["format"] != FORMAT:
        found = f"format {content['format']}" if is_own(content) else describe(content)
        raise UserError(f"{flag} {path}: {found} found, a checkpoint of train.py expected; use a "
                        "*_last.t or *_best.t file")
    return Checkpoint(**{entry.name: content[entry.name] for entry in fields(Checkpoint)
                         if entry.name in content})


def load_network(path: str | Path, flag: str = "--resume") -> tuple[TwoStream, dict[str, Any]]:
    """The network of a checkpoint of this project's or a published one, and what the file says of it."""
    content = load_file(path, flag)
    if is_published(content):
        net, facts, report = load_published(content, path, flag)
        print("\n".join(report))
        return net, {**net.method.size, **facts}
    checkpoint = as_checkpoint(content, path, flag)
    return checkpoint.network(path, flag), checkpoint.args


def is_own(content: Any) -> bool:
    """Whether a file's content is a checkpoint of this project."""
    keys = {"format": int, "net": dict, "args": dict, "num_classes": int, "epoch": int}
    return isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in keys.items())


def describe(content: Any) -> str:
    """Say in words what a file holds."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"a bare state dict of {len(content)} tensors"
    return f"a dict with the keys {', '.join(map(str, list(content)[:6])) or '(none)'}"


def remove_old_epochs(folder: Path, run: str, keep: int, epoch: int) -> None:
    """Delete all but the newest `keep` epoch_N files up to this epoch; later ones are an earlier run's."""
    name = re.compile(re.escape(run) + r"_epoch_(\d+)\.t")
    numbered = sorted((int(match[1]), path) for path in folder.iterdir()
                      if (match := name.fullmatch(path.name)) and int(match[1]) <= epoch)
    for _, path in numbered[:-keep]:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- weights
def load_weights(net: nn.Module, found: Mapping[str, Any], names: Mapping[str, str], spare: Collection[str],
                 source: str, expected: str) -> None:
    """Load a file's state dict into a network.

    names: the file's name of each of the network's weights; spare: other names that it may hold; source: flag
    and file. Raises `UserError` for a weight that is missing or does not fit, and for an unknown name.
    """
    own = net.state_dict()
    faults = [line for ours, theirs in names.items() if (line := fault(found, theirs, own[ours].shape))]
    faults += [f"has an unexpected {name}" for name in found.keys() - set(names.values()) - set(spare)]
    if faults:
        raise UserError(f"{source}: {faults[0]} ({len(faults)} such); the weights of {expected} expected, "
                        "whole and finite; use another file")
    net.load_state_dict({ours: found[theirs] for ours, theirs in names.items() if theirs in found},
                        strict=False)


def fault(weights: Mapping[str, Any], name: str, shape: torch.Size) -> str:
    """What keeps a file's entry from being a weight of that shape, in words; empty if nothing does."""
    if name not in weights:
        return "" if name.endswith(COUNT) else f"lacks {name}"
    value = weights[name]
    if not isinstance(value, Tensor):
        return f"{name} is a {type(value).__name__}, a tensor expected"
    if value.shape != shape:
        return f"{name} has shape {tuple(value.shape)}, {tuple(shape)} expected"
    return "" if torch.isfinite(value).all() else f"{name} holds NaN or infinite values"


def state_dict(content: Any) -> dict[str, Any]:
    """The state dict that a file's content is, or holds under one of WRAPPERS, without DataParallel's
    `module.`; empty if there is none.
    """
    if not isinstance(content, dict):
        return {}
    weights = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
    return {str(name).removeprefix("module."): value for name, value in weights.items()}


def pretrained_weights(source: str, arch: str) -> tuple[dict[str, Tensor] | None, str]:
    """The backbone's first weights, and a line that says which: None for `none`, ImageNet-1k's for
    `imagenet`, or those of a file in torchvision's form.
    """
    if source == "none":
        return None, "none, a random start"
    path = fetch_imagenet(arch) if source == "imagenet" else source
    weights = load_file(path, "--pretrained")
    found = weights if isinstance(weights, dict) else {}
    for name, shape in weight_shapes(arch).items():
        if line := fault(found, name, shape):
            raise UserError(f"--pretrained {source}: {path} holds {describe(weights)} and {line}; "
                            f"torchvision's state dict of {arch} expected")
    return weights, f"{source}, {path} (SHA-256 {sha256(Path(path))[:16]})"


def load_init(net: TwoStream, path: str, dataset: str, trial: int) -> str:
    """`--init`: take the weights of a file that fit by name and shape; a line on what came and what not.

    Reads checkpoints of train.py, published files, and bare state dicts of either. A stage that the file
    shares and the network has once for each modality (`cgrnet` from `base`) goes to both streams. Raises
    `UserError` unless the whole backbone is there, and for a file of another split of this data set.
    """
    content = load_file(path, "--init")
    if (is_own(content) and DATASETS[dataset].splits > 1 and content["args"].get("dataset") == dataset
            and content.get("trial") != trial):
        raise UserError(f"--init {path}: trained on trial {content.get('trial')}, whose training persons are "
                        f"among the test persons of trial {trial}; take a file of the same trial, or of "
                        "another data set")
    published = is_published(content)
    weights = load_published(content, path, "--init")[0].state_dict() if published else state_dict(content)
    own = net.state_dict()
    sources = {name: name if name in weights else re.sub(r"^streams\.\w+\.layer", "shared.layer", name)
               for name in own}
    faults = {name: fault(weights, source, own[name].shape) for name, source in sources.items()}
    missing = [line for name, line in faults.items() if line and name.startswith(("streams.", "shared."))]
    if missing:
        raise UserError(f"--init {path}: {describe(content)} {missing[0]} ({len(missing)} such); the whole "
                        "backbone of this network expected; take a file of the same architecture, or leave "
                        "--init out (torchvision's weights: --pretrained FILE)")
    fitting = {name: weights[source] for name, source in sources.items()
               if source in weights and not faults[name]}
    net.load_state_dict(fitting, strict=False)
    left = sorted((own.keys() | weights.keys()) - fitting.keys() - {sources[name] for name in fitting})
    return (f"{len(fitting)} of {len(own)} tensors and 100 % of the backbone's parameters came from the "
            "file; " + (f"left out: {', '.join(left)}" if left else "every key used"))


# ------------------------------------------------------------------------------------------------- other code
def is_published(content: Any) -> bool:
    """Whether a file's content is, or holds, a state dict of code that published.py knows."""
    return find_foreign(state_dict(content)) is not None


def load_published(content: Any, path: str | Path,
                   flag: str = "--resume") -> tuple[TwoStream, dict[str, Any], list[str]]:
    """The network of a published checkpoint in eval mode, what its keys say, and lines on what was used.

    Raises `UserError` for a weight that is missing or does not fit, and for an unknown name.
    """
    found = state_dict(content)
    row, head = find_foreign(found), found.get("classifier.weight")
    classes = len(head) if isinstance(head, Tensor) and head.ndim else 1
    layers = {name.removeprefix(prefix) for prefix in row.resnets for name in found
              if name.startswith(prefix)}
    resnets = {arch: whole_state(arch).keys() for arch in BACKBONES}
    arch = min(resnets, key=lambda arch: len(layers ^ resnets[arch]))
    net = build_network(override(METHODS[row.method], row.changes), arch, classes)
    names = {name: row.translate(name) for name in net.state_dict()}
    spare = {prefix + name for prefix in row.resnets for name in resnets[arch]}
    spare |= {name for name in found if name.startswith(row.unused)}
    load_weights(net, found, names, spare, f"{flag} {path}", f"{row.method} on {arch}, as published,")
    trained_on = [("dataset", name) for name, data in DATASETS.items()
                  if data.published.get("training persons") == classes]
    used = found.keys() & names.values()
    modules = dict.fromkeys(re.match(r"\w+(\.(visible|thermal|base)\.\w+)?", name)[0]
                            for name in found if name not in used)
    return net.eval(), {"method": row.method, "arch": arch, **dict(trained_on)}, [
        f"used: {len(used)} keys ({row.method}, {arch}, {classes} classes)",
        f"unused: {len(found) - len(used)} keys ({', '.join(modules)})" if modules else "unused: none",
        f"missing: {len(names) - len(used)} keys that testing does not read ({COUNT})"
        if len(names) > len(used) else "missing: none"]
