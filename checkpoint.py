"""Checkpoints: written whole or not at all, read without running what they hold, checked before they are used."""
from __future__ import annotations

import contextlib
import pickle
import pickletools
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_manager import DATASETS, TRIALS
from model import ARCHS, METHODS, TwoStream
from utils import UserError, atomic_path, one_line, warn

FORMAT = 1
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that weights may be stored in


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint beside `path`, flush it, and rename it: `path` is the old file or the new one, whole.

    Raises `UserError` naming the file where the disk or the folder refuses it.
    """
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        reason = getattr(error, "strerror", None) or one_line(error)[:200]
        raise UserError(f"{path}: cannot be written ({reason}); the previous checkpoint, if any, is intact; make room or "
                        "choose another --model_path") from None


def load_file(path: str | Path, flag: str) -> Any:
    """Read a file of tensors, plain types and NumPy numbers and arrays, and refuse anything else unrun.

    Raises `UserError` naming the flag and the file.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder found, a file expected" if path.is_dir() else "no such file"
        raise UserError(f"{flag} {path}: {what}; name a checkpoint")
    if path.stat().st_size == 0:
        raise UserError(f"{flag} {path}: an empty file found, a checkpoint expected; use another file")
    try:
        with torch.serialization.safe_globals(numpy_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch and zipfile stumble in many ways
        raise UserError(f"{flag} {path}: {why_refused(path, error)}") from None


def why_refused(path: Path, error: Exception) -> str:
    """Say in words what a file that torch could not load holds."""
    named = re.search(r"GLOBAL ([\w.]+)|([\w.]+) was not an allowed global", str(error))
    name = named[1] or named[2] if named else named_in_pickle(path)
    if name and isinstance(error, pickle.UnpicklingError):
        return (f"refused, it refers to {name}, which could run code when loaded; tensors, plain types and NumPy arrays expected; "
                "use a file from a source you trust")
    cause = re.search(r"WeightsUnpickler error: (.*?)(?: Check the documentation|$)", one_line(error))
    reason = cause[1] if cause else f"{type(error).__name__}: {one_line(error)}"
    with open(path, "rb") as file:
        start = file.read(16)
    return (f"{path.stat().st_size} bytes that begin with {start!r} found, a whole checkpoint of tensors, plain types and NumPy "
            f"arrays of numbers expected ({reason[:160]}); use another file")


def named_in_pickle(path: Path) -> str | None:
    """The first name outside torch and NumPy that a plain pickle refers to, read without running it; None without one."""
    words: list[str] = []
    with open(path, "rb") as file, contextlib.suppress(Exception):  # pickletools stumbles over what is no pickle
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                words[:] = argument.split(" ", 1)
            elif isinstance(argument, str):
                words.append(argument)
            refers = opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL")
            if refers and words[-2].split(".")[0] not in ("torch", "numpy", "collections"):
                return ".".join(words[-2:])
    return None


def numpy_globals() -> list[Any]:
    """What a pickled NumPy array or number of bool, integer or float type refers to, under NumPy 1 and 2; no more."""
    core = getattr(np, "_core", None) or np.core
    reconstruct, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    dtypes = {type(np.dtype(kind)) for kind in ("?", *np.typecodes["AllInteger"], *np.typecodes["Float"])}
    return [np.ndarray, np.dtype, *sorted(dtypes, key=str), reconstruct, scalar,
            (reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar"),
            (reconstruct, "numpy._core.multiarray._reconstruct"), (scalar, "numpy._core.multiarray.scalar")]


def load_checkpoint(path: str | Path, flag: str = "--resume") -> dict[str, Any]:
    """Read one of this project's checkpoints.

    Raises `UserError` if it is none, is of another version, contradicts itself or holds NaN.
    """
    content = load_file(path, flag)
    if not is_own(content):
        raise UserError(f"{flag} {path}: {describe(content)} found, a checkpoint of train.py expected; use a *_last.t or "
                        "*_best.t file")
    if content["format"] != FORMAT:
        raise UserError(f"{flag} {path}: format {content['format']} found, {FORMAT} expected; use the version of the code that "
                        "wrote it")
    require_facts(content, path, flag)
    require_finite(content["net"], path, flag)
    return content


def require_facts(content: dict[str, Any], path: str | Path, flag: str) -> None:
    """Raise `UserError` unless what a checkpoint says of itself is a network of ours, and its classifier fits."""
    sizes, trials = range(16, 4097), range(1, TRIALS + 1)
    expected = {"method": METHODS, "arch": ARCHS, "dataset": DATASETS, "img_h": sizes, "img_w": sizes, "trial": trials}
    for name, value, known in [*((name, content["args"].get(name), known) for name, known in expected.items()),
                               ("trial", content.get("trial"), trials)]:
        if not isinstance(value, (str, int)) or value not in known:
            words = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(known)
            raise UserError(f"{flag} {path}: {name} {str(value)[:40]!r} found in it, one of {words} expected; use a file that "
                            "train.py wrote")
    if content["trial"] != content["args"]["trial"]:
        raise UserError(f"{flag} {path}: trial {content['trial']} and, in its arguments, {content['args']['trial']} found; use a "
                        "file that train.py wrote")
    if content["epoch"] < 0:
        raise UserError(f"{flag} {path}: epoch {content['epoch']} found, at least 0 expected; use a file that train.py wrote")
    head = content["net"].get("classifier.weight")
    if not isinstance(head, Tensor) or head.ndim != 2 or len(head) != content["num_classes"]:
        found = f"a classifier of shape {tuple(head.shape)}" if isinstance(head, Tensor) else "no classifier.weight"
        raise UserError(f"{flag} {path}: {content['num_classes']} classes and {found} found, one row for each class expected; use "
                        "a file that train.py wrote")


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


def require_finite(weights: dict[str, Tensor], path: str | Path, flag: str) -> None:
    """Raise `UserError` if a weight is no plain tensor, or holds NaN or an infinity."""
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{flag} {path}: {name} is a {type(value).__name__}, a tensor expected; use another file")
        counts = value.dtype == torch.int64 and name.endswith("num_batches_tracked")
        if value.is_nested or value.layout != torch.strided or value.is_meta or not (counts or value.dtype in FLOATS):
            raise UserError(f"{flag} {path}: {name} is a tensor of {value.dtype}, {value.layout} on {value.device}, plain real "
                            "numbers expected; use another file")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{flag} {path}: {name} holds NaN or infinite values; use an earlier checkpoint")


def restore(net: nn.Module, weights: dict[str, Tensor], path: str | Path, flag: str) -> None:
    """Load weights that must fit the network key by key; `UserError` names the first that does not."""
    own = net.state_dict()
    for kind, names in (("lacks", own.keys() - weights.keys()), ("has an unexpected", weights.keys() - own.keys())):
        if names:
            raise UserError(f"{flag} {path}: {kind} {min(names, key=str)} ({len(names)} such); a file of the same method and "
                            "architecture expected")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise UserError(f"{flag} {path}: {name} has shape {tuple(value.shape)}, {tuple(own[name].shape)} expected; a file of "
                            "the same architecture and class count expected")
    net.load_state_dict(weights)


def network_of(content: dict[str, Any], path: str | Path, flag: str = "--resume") -> TwoStream:
    """The network of one of this project's checkpoints, as `load_checkpoint` returns it."""
    net = TwoStream(content["args"]["method"], content["args"]["arch"], content["num_classes"])
    restore(net, content["net"], path, flag)
    return net


def warn_of_best(path: str | Path) -> None:
    """Warn that a checkpoint was chosen by scores on the images that it is about to be tested on."""
    warn(f"--resume {path}: a best file, chosen on the test images that it is reported on, as is usual in this field; a last file "
         "is not")


def load_init(net: nn.Module, path: str, dataset: str, trial: int) -> list[str]:
    """`--init`: take those weights of a checkpoint that fit by name and shape; returns the names left as they were.

    A stage that the file shares and the network has once for each modality (`cgrnet` from `base`) goes to both streams.
    Raises `UserError` if nothing fits, or if the file was trained on another split of this data set, whose training persons
    are among the test persons of this one.
    """
    content = load_file(path, "--init")
    if is_own(content) and DATASETS[dataset].splits > 1 and content["args"].get("dataset") == dataset:
        if content.get("trial") != trial:
            raise UserError(f"--init {path}: trained on trial {content.get('trial')}, whose training persons are among the test "
                            f"persons of trial {trial}; take a file of the same trial, or of another data set")
    weights = content.get("net", content) if isinstance(content, dict) else {}
    weights = {name: value for name, value in weights.items() if isinstance(value, Tensor)} if isinstance(weights, dict) else {}
    require_finite(weights, path, "--init")
    own = net.state_dict()
    sources = {name: name if name in weights else re.sub(r"^streams\.\w+\.layer", "shared.layer", name) for name in own}
    fitting = {name: weights[source] for name, source in sources.items()
               if source in weights and weights[source].shape == own[name].shape}
    if not fitting:
        raise UserError(f"--init {path}: {describe(content)} found, none of whose tensors fits the network; a checkpoint of "
                        "train.py expected")
    net.load_state_dict(fitting, strict=False)
    used = fitting.keys() | {sources[name] for name in fitting}
    return sorted(map(str, (own.keys() | weights.keys()) - used))


def pretrained_weights(source: str, arch: str) -> dict[str, Tensor] | None:
    """The backbone's first weights: None for `none`, torchvision's ImageNet-1k V1 for `imagenet`, or a file of that form.

    Raises `UserError` that says where to put which file when it cannot be fetched, or what does not fit.
    """
    if source == "none":
        return None
    flag = f"--pretrained {source}"
    if source == "imagenet":
        source = fetch_imagenet(arch)
    weights = load_file(source, "--pretrained")
    import torchvision
    expected = getattr(torchvision.models, arch)(weights=None).state_dict()
    if not isinstance(weights, dict):
        weights = {}
    for name, value in expected.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        if not isinstance(weights.get(name), Tensor) or weights[name].shape != value.shape:
            raise UserError(f"{flag}: {source} holds {describe(weights)} without {name} of shape {tuple(value.shape)}; "
                            f"torchvision's state dict of {arch} expected")
    require_finite({name: weights[name] for name in expected if name in weights}, source, "--pretrained")
    return weights


def fetch_imagenet(arch: str) -> Path:
    """The path of torchvision's ImageNet-1k V1 weights, fetched into torch's cache unless they are there."""
    import torchvision
    enum = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(enum.url).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(enum.url, str(path), hash_prefix=path.stem.split("-")[-1])
        except (OSError, RuntimeError) as error:
            raise UserError(f"--pretrained imagenet: {enum.url} cannot be fetched ({one_line(error)[:120]}); put that file at "
                            f"{path}, or use --pretrained FILE or --pretrained none") from None
    return path


def rng_state() -> dict[str, Any]:
    """The state of every generator, as tensors and plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {"python": [version, list(numbers), gauss],
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every generator back; those of CUDA only where as many devices are there."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def remove_old_epochs(folder: Path, run: str, keep: int, epoch: int) -> None:
    """Delete all but the newest `keep` epoch_N files of a run up to this epoch; later ones are of an earlier run."""
    numbered = sorted((int(match[1]), path) for path in folder.glob(f"{_escape(run)}_epoch_*.t")
                      if (match := re.fullmatch(r".*_epoch_(\d+)\.t", path.name)) and int(match[1]) <= epoch)
    for _, path in numbered[:-keep]:
        path.unlink(missing_ok=True)


def _escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)
