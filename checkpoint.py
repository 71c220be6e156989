"""Files of weights, ours and other code's: written whole or not at all, read without running what they hold.

Other code: the AGW line (AGW, CAJ and their `base`) and the published CGRNet, read by their keys. Each of
their modules carries a whole ResNet of which their forward pass uses some stages; those are taken, the rest
is counted. What their forward pass does not use is built without: the published CGRNet has no graph.
"""
from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones import BACKBONES, fetch_imagenet, torchvision_state, weight_shapes
from data_manager import DATASETS
from model import METHODS, TwoStream, build_network, override
from utils import UserError, atomic_path, one_line, sha256, warn

FORMAT = 1
OURS = "a checkpoint of train.py expected; use a *_last.t or *_best.t file"


@dataclass
class Checkpoint:
    """What a file of train.py holds.

    name: the run's, with which its files begin; args: its arguments; trial: the data set's split; epoch: the
    next one; step, sums, seconds: of an epoch that was begun; best: scores of the best epoch so far;
    fingerprint: of the training images; processes: that train together; criterion, optimiser: what losses
    learn, and the optimiser's state, which is None in a file of weights alone (`best`).
    """

    net: dict[str, Tensor]
    args: dict[str, Any]
    num_classes: int
    name: str = ""
    epoch: int = 0
    trial: int = 1
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
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
        method = override(METHODS[self.args["method"]], list(map(str, self.args.get("set") or ())))
        net = build_network(method, self.args["arch"], self.num_classes)
        restore(net, self.net, path, flag)
        return net


# ------------------------------------------------------------------------------------------------------ files
def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside `path`, flush it, and rename it: `path` is the old file or the new one.

    Raises `UserError` naming the file where the disk or the folder refuses it.
    """
    content = {entry.name: getattr(checkpoint, entry.name) for entry in dataclasses.fields(checkpoint)}
    content = {"format": FORMAT, **{name: value for name, value in content.items() if value is not None}}
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        reason = getattr(error, "strerror", None) or one_line(error)[:200]
        raise UserError(f"{path}: cannot be written ({reason}); the previous checkpoint, if any, is intact; "
                        "make room or choose another --model_path") from None


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
    core = getattr(np, "_core", None) or np.core
    reconstruct, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    dtypes = {type(np.dtype(kind)) for kind in ("?", *np.typecodes["AllInteger"], *np.typecodes["Float"])}
    return [np.ndarray, np.dtype, *sorted(dtypes, key=str), reconstruct, scalar,
            (reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar"),
            (reconstruct, "numpy._core.multiarray._reconstruct"), (scalar, "numpy._core.multiarray.scalar")]


def load_checkpoint(path: str | Path, flag: str = "--resume") -> Checkpoint:
    """Read one of this project's checkpoints; raises `UserError` if it is none."""
    return as_checkpoint(load_file(path, flag), path, flag)


def as_checkpoint(content: Any, path: str | Path, flag: str = "--resume") -> Checkpoint:
    """A file's content as a checkpoint; `UserError` if it is none, is of another version or holds NaN."""
    if not is_own(content):
        raise UserError(f"{flag} {path}: {describe(content)} found, {OURS}")
    if content["format"] != FORMAT:
        raise UserError(f"{flag} {path}: format {content['format']} found, {FORMAT} expected; use the "
                        "version of the code that wrote it")
    names = {entry.name for entry in dataclasses.fields(Checkpoint)}
    checkpoint = Checkpoint(**{name: value for name, value in content.items() if name in names})
    require_finite(checkpoint.net, path, flag)
    return checkpoint


def load_network(path: str | Path, flag: str = "--resume") -> tuple[TwoStream, dict[str, Any]]:
    """The network of one of this project's checkpoints or of a published one, and what the file says of it.

    Raises `UserError` if it is neither.
    """
    content = load_file(path, flag)
    if is_published(content):
        net, facts, report = load_published(content, str(path))
        print("\n".join(report))
        return net, facts
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


def require_finite(weights: Mapping[str, Any], path: str | Path, flag: str) -> None:
    """Raise `UserError` if a weight is no tensor, or holds NaN or an infinity."""
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{flag} {path}: {name} is a {type(value).__name__}, a tensor expected; "
                            "use another file")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{flag} {path}: {name} holds NaN or infinite values; use an earlier checkpoint")


def restore(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path, flag: str) -> None:
    """Load weights that must fit the network key by key; `UserError` names the first that does not."""
    own = net.state_dict()
    missing, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
    for kind, names in (("lacks", missing), ("has an unexpected", unexpected)):
        if names:
            raise UserError(f"{flag} {path}: {kind} {min(names, key=str)} ({len(names)} such); a file of the "
                            "same method and architecture expected")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise UserError(f"{flag} {path}: {name} has shape {tuple(value.shape)}, {tuple(own[name].shape)} "
                            "expected; a file of the same architecture and class count expected")
    net.load_state_dict(weights)


def remove_old_epochs(folder: Path, run: str, keep: int, epoch: int) -> None:
    """Delete all but the newest `keep` epoch_N files up to this epoch; later ones are an earlier run's."""
    name = re.compile(re.escape(run) + r"_epoch_(\d+)\.t")
    numbered = sorted((int(match[1]), path) for path in folder.iterdir()
                      if (match := name.fullmatch(path.name)) and int(match[1]) <= epoch)
    for _, path in numbered[:-keep]:
        path.unlink(missing_ok=True)


def warn_of_best(path: str | Path) -> None:
    """Warn that a checkpoint was chosen by scores on the images that it is about to be tested on."""
    warn(f"--resume {path}: a best file, chosen on the test images that it is reported on, as is usual in "
         "this field; a last file is not")


# ---------------------------------------------------------------------------------------------- first weights
def pretrained_weights(source: str, arch: str) -> tuple[dict[str, Tensor] | None, str]:
    """The backbone's first weights, and a line that says which: None for `none`, ImageNet-1k's for
    `imagenet`, or those of a file in torchvision's form.

    Raises `UserError` that says where to put which file when it cannot be fetched, or what does not fit.
    """
    if source == "none":
        return None, "none, a random start"
    path = fetch_imagenet(arch) if source == "imagenet" else source
    weights, shapes = load_file(path, "--pretrained"), weight_shapes(arch)
    for name, shape in shapes.items():
        value = weights.get(name) if isinstance(weights, dict) else None
        if not isinstance(value, Tensor) or value.shape != shape:
            raise UserError(f"--pretrained {source}: {path} holds {describe(weights)} without {name} of "
                            f"shape {tuple(shape)}; torchvision's state dict of {arch} expected")
    require_finite({name: weights[name] for name in shapes}, path, "--pretrained")
    return weights, f"{source}, {path} (SHA-256 {sha256(Path(path))[:16]})"


def load_init(net: TwoStream, path: str, dataset: str, trial: int) -> str:
    """`--init`: take the weights of a file that fit by name and shape; a line on what came and what not.

    Reads checkpoints of train.py, published files, and bare state dicts of either. A stage that the file
    shares and the network has once for each modality (`cgrnet` from `base`) goes to both streams. Raises
    `UserError` unless the whole backbone is there, or if the file was trained on another split of this data
    set, whose training persons are among the test persons of this one.
    """
    content = load_file(path, "--init")
    if is_own(content) and DATASETS[dataset].splits > 1 and content["args"].get("dataset") == dataset:
        if content.get("trial") != trial:
            raise UserError(f"--init {path}: trained on trial {content.get('trial')}, whose training persons "
                            f"are among the test persons of trial {trial}; take a file of the same trial, or "
                            "of another data set")
    weights = {name: value for name, value in state_dict(content).items() if isinstance(value, Tensor)}
    if is_published(weights):
        weights = translated(weights, path, "--init")[0]
    require_finite(weights, path, "--init")
    own = net.state_dict()
    sources = {name: name if name in weights else re.sub(r"^streams\.\w+\.layer", "shared.layer", name)
               for name in own}
    fitting = {name: weights[source] for name, source in sources.items()
               if source in weights and weights[source].shape == own[name].shape}
    backbone = [name for name in own if name.startswith(("streams.", "shared."))]
    missing = [name for name in backbone if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"--init {path}: {describe(content)} without {missing[0]} of shape "
                        f"{tuple(own[missing[0]].shape)} found ({len(missing)} such of {len(backbone)}); the "
                        "whole backbone of this network expected; take a file of the same architecture whose "
                        "layers fit, or leave --init out (torchvision's weights: --pretrained FILE)")
    net.load_state_dict(fitting, strict=False)
    left = sorted((own.keys() | weights.keys()) - fitting.keys() - {sources[name] for name in fitting})
    return (f"{len(fitting)} of {len(own)} tensors and 100 % of the backbone's parameters came from the "
            "file; " + (f"left out: {', '.join(left)}" if left else "every key used"))


# ------------------------------------------------------------------------------------------------- other code
WRAPPERS = ("net", "state_dict", "model", "model_state_dict")  # keys that state dicts are saved under
SIGNS = ("visible_module.visible.", "thermal_module.thermal.", "base_resnet.base.")  # of a published file
AGW = {  # our modules -> theirs; the longest name that fits counts
    "streams.visible": "visible_module.visible", "streams.infrared": "thermal_module.thermal",
    "shared": "base_resnet.base", "non_local.layer2": "NL_2", "non_local.layer3": "NL_3",
    "bottleneck": "bottleneck", "classifier": "classifier",
}
CGRNET_ONLY = {
    "streams.visible.layer1": "visible_block.base.layer1",
    "streams.infrared.layer1": "thermal_block.base.layer1",
    "shared.layer2": "common_block.base.layer2", "similarity.visible": "cam1", "similarity.infrared": "cam2",
}
# Modules of published files that hold a whole ResNet each, and those of CGRNet that no forward pass uses.
BRANCH = re.compile(r"(visible_module\.visible|thermal_module\.thermal"
                    r"|(base_resnet|(visible|thermal|common)_block)\.base)\.")
UNUSED = ("local2local.", "local2global.", "global2local.")
PUBLISHED = METHODS | {"cgrnet": override(METHODS["cgrnet"], ["graph=None", "similarity=energy"])}


def is_published(content: Any) -> bool:
    """Whether a file's content is a state dict with keys of the AGW line, see `state_dict`."""
    return any(name.startswith(SIGNS) for name in state_dict(content))


def state_dict(content: Any) -> dict[str, Any]:
    """The state dict that a file's content is, or holds under one of WRAPPERS, without the `module.` that
    DataParallel puts before every name; empty if there is none.
    """
    if not isinstance(content, dict):
        return {}
    weights = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
    return {str(name).removeprefix("module."): value for name, value in weights.items()}


def load_published(content: dict[str, Any], path: str) -> tuple[TwoStream, dict[str, Any], list[str]]:
    """The network of a published checkpoint in eval mode, what its keys say, and lines on what was used.

    Raises `UserError` for a key that the forward pass needs and that is missing, of another shape or not
    finite, and for keys of modules that it does not know.
    """
    found = state_dict(content)
    weights, method, arch, classes = translated(found, path, "--resume")
    require_finite(weights, path, "--resume")
    net = build_network(PUBLISHED[method], arch, classes)
    net.load_state_dict(weights, strict=False)
    missing, unused = len(net.state_dict()) - len(weights), unused_names(found, method, arch)
    trained_on = [("dataset", name) for name, data in DATASETS.items()
                  if data.published.get("training persons") == classes]
    report = [f"used: {len(weights)} keys ({method}, {arch}, {classes} classes)",
              f"unused: {len(unused)} keys ({summarise(unused)})" if unused else "unused: none",
              f"missing: {missing} keys that testing does not read (num_batches_tracked)" if missing
              else "missing: none"]
    return net.eval(), {"method": method, "arch": arch, **dict(trained_on)}, report


def translated(found: dict[str, Any], path: str, flag: str) -> tuple[dict[str, Tensor], str, str, int]:
    """The weights of a published state dict under our names, with method, backbone and number of classes.

    Raises `UserError` for a missing key, one of another shape, and one that no known module has.
    """
    head = found.get("classifier.weight")
    if not isinstance(head, Tensor) or head.ndim != 2:
        raise UserError(f"{flag} {path}: lacks classifier.weight of shape (classes, features), which tells "
                        "the number of classes; a complete checkpoint expected")
    tops = {name.split(".")[0] for name in found}
    method = "cgrnet" if tops & {name.split(".")[0] for name in CGRNET_ONLY.values()} else (
        "agw" if any(name.startswith("NL_") for name in tops) else "base")
    arch = min(BACKBONES,
               key=lambda arch: len(published_shapes(method, arch, len(head)).keys() - found.keys()))
    shapes = published_shapes(method, arch, len(head))
    for name, (_, shape) in shapes.items():
        if name not in found:
            if name.endswith("num_batches_tracked"):  # a count that testing does not read
                continue
            raise UserError(f"{flag} {path}: lacks {name}, which {method} on {arch} needs; a complete "
                            "checkpoint expected")
        if getattr(found[name], "shape", None) != shape:
            what = f"has shape {tuple(found[name].shape)}" if isinstance(found[name], Tensor) else (
                f"is a {type(found[name]).__name__}")
            raise UserError(f"{flag} {path}: {name} {what}, a tensor of shape {tuple(shape)} expected for "
                            f"{method} on {arch}; use another file")
    layers, used = torchvision_state(arch), set(map(top, shapes))
    for name in unused_names(found, method, arch):
        spare = name.startswith(UNUSED) or (BRANCH.match(name) and BRANCH.sub("", name, 1) in layers)
        if not spare or top(name) in used:
            raise UserError(f"{flag} {path}: {name} found, which {method} on {arch} has no place for; a "
                            f"published file of AGW, CAJ or CGRNet on {' or '.join(BACKBONES)} expected: "
                            "this is another network")
    return {ours: found[name] for name, (ours, _) in shapes.items() if name in found}, method, arch, len(head)


def published_shapes(method: str, arch: str, classes: int) -> dict[str, tuple[str, torch.Size]]:
    """For each published name that a method's forward pass uses: our name of it, and its shape."""
    theirs = AGW | (CGRNET_ONLY if method == "cgrnet" else {})
    with torch.device("meta"):
        own = build_network(PUBLISHED[method], arch, classes).state_dict()
    return {translate(name, theirs): (name, value.shape) for name, value in own.items()}


def unused_names(found: Mapping[str, Any], method: str, arch: str) -> list[str]:
    """The names of a published state dict that the forward pass does not use."""
    used = published_shapes(method, arch, 1)
    return [name for name in found if name not in used]


def translate(name: str, theirs: Mapping[str, str]) -> str:
    """The published name of one of our weights; their non-local block wraps g in a sequence."""
    module = max((ours for ours in theirs if name.startswith(f"{ours}.")), key=len)
    return re.sub(r"^(NL_\d\.\d+\.g)\.", r"\1.0.", theirs[module] + name[len(module):])


def top(name: str) -> str:
    """The layer of a ResNet, or else the module, that a published name belongs to."""
    return re.match(r"\w+\.(?:visible|thermal|base)\.\w+|\w*", name)[0]


def summarise(names: Iterable[str]) -> str:
    """Published names in a few words, such as `visible_module.visible.layer1-4, fc; local2local`."""
    layers: dict[str, list[str]] = {}
    for layer in dict.fromkeys(map(top, names)):
        module, _, last = layer.rpartition(".")
        layers.setdefault(module or last, []).extend([last] if module else [])
    words = []
    for module, inner in layers.items():
        text = ", ".join(inner)
        for first, last in ((1, 4), (1, 3), (2, 4), (1, 2), (2, 3), (3, 4)):
            text = text.replace(", ".join(f"layer{n}" for n in range(first, last + 1)),
                                f"layer{first}-{last}")
        words.append(f"{module}.{text}" if text else module)
    return "; ".join(words)
