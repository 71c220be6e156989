"""Checkpoints of other code: the AGW line (AGW, CAJ and their `base`) and the published CGRNet, read by their keys.

Each of their modules carries a whole ResNet of which their forward pass uses some stages; those are taken, the rest is
counted. What their forward pass does not use is built without: the published CGRNet has no graph.
"""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from checkpoint import require_finite
from data_manager import DATASETS
from model import METHODS, TwoStream
from utils import UserError

SIGNS = ("visible_module.visible.", "thermal_module.thermal.", "base_resnet.base.")  # of a file that this module reads
AGW = {  # our modules -> theirs; the longest name that fits counts
    "streams.visible": "visible_module.visible", "streams.infrared": "thermal_module.thermal", "shared": "base_resnet.base",
    "non_local.layer2": "NL_2", "non_local.layer3": "NL_3", "bottleneck": "bottleneck", "classifier": "classifier",
}
CGRNET_ONLY = {
    "streams.visible.layer1": "visible_block.base.layer1", "streams.infrared.layer1": "thermal_block.base.layer1",
    "shared.layer2": "common_block.base.layer2", "similarity.visible": "cam1", "similarity.infrared": "cam2",
}
METHODS_OF_OTHERS = METHODS | {"cgrnet": dataclasses.replace(METHODS["cgrnet"], graph=None, similarity="energy")}


def is_foreign(content: Any) -> bool:
    """Whether a file's content is a dict whose `net` has keys of the AGW line, with or without DataParallel's prefix."""
    net = content.get("net") if isinstance(content, dict) else None
    return isinstance(net, dict) and any(name.startswith(SIGNS) for name in without_prefix(net))


def without_prefix(net: dict[Any, Any]) -> dict[str, Any]:
    """The same state dict without the `module.` that DataParallel puts before every name."""
    return {str(name).removeprefix("module."): value for name, value in net.items()}


def load(content: dict[str, Any], path: str) -> tuple[TwoStream, dict[str, Any], list[str]]:
    """The network of a published checkpoint in eval mode, what its keys say of it, and lines on used, unused and missing keys.

    Raises `UserError` for a key that the forward pass needs and that is missing, of another shape or not finite, and for
    blocks that our network has no place for.
    """
    found = without_prefix(content["net"])
    method, arch, classes = recognise(found, path)
    net = TwoStream(METHODS_OF_OTHERS[method], arch, classes)
    own, theirs = net.state_dict(), AGW | (CGRNET_ONLY if method == "cgrnet" else {})
    wanted = {translate(name, theirs): name for name in own}
    used = {name: found[name] for name in wanted if name in found}
    unused = [name for name in found if name not in wanted]
    for name in wanted:
        if name not in found and not name.endswith("num_batches_tracked"):  # a count that testing does not read
            raise UserError(f"--resume {path}: lacks {name}, which {method} on {arch} needs; a complete checkpoint expected")
    require_finite(used, path, "--resume")
    for name, value in used.items():
        if value.shape != own[wanted[name]].shape:
            raise UserError(f"--resume {path}: {name} has shape {tuple(value.shape)}, {tuple(own[wanted[name]].shape)} expected "
                            f"for {method} on {arch}; use another file")
    taken = {top(name) for name in wanted if not name.startswith("classifier.")}
    for name in unused:
        if top(name) in taken or name.startswith("NL_"):
            raise UserError(f"--resume {path}: {name} found, which {method} on {arch} has no place for; a file of ResNet-50 or "
                            "ResNet-18, with the published non-local blocks or none, expected")
    net.load_state_dict({wanted[name]: value for name, value in used.items()}, strict=False)
    missing = len(wanted) - len(used)
    trained_on = [("dataset", name) for name, data in DATASETS.items() if data.published[0] == classes]
    facts = {"method": method, "arch": arch, **dict(trained_on)}
    report = [f"used: {len(used)} keys ({method}, {arch}, {classes} classes)",
              f"unused: {len(unused)} keys ({summarise(unused)})" if unused else "unused: none",
              f"missing: {missing} keys that testing does not read (num_batches_tracked)" if missing else "missing: none"]
    return net.eval(), facts, report


def recognise(found: dict[str, Any], path: str) -> tuple[str, str, int]:
    """Method, backbone and number of classes of a published state dict, by its keys; `UserError` without a classifier."""
    head = found.get("classifier.weight")
    if not isinstance(head, Tensor) or head.ndim != 2:
        raise UserError(f"--resume {path}: lacks classifier.weight of shape (classes, features), which tells the number of "
                        "classes; a complete checkpoint expected")
    tops = {name.split(".")[0] for name in found}
    if tops & {name.split(".")[0] for name in CGRNET_ONLY.values()}:
        method = "cgrnet"
    else:
        method = "agw" if any(name.startswith("NL_") for name in tops) else "base"
    bottlenecks = any(re.match(r"base_resnet\.base\.layer\d\.\d+\.conv3\.", name) for name in found)
    return method, "resnet50" if bottlenecks else "resnet18", len(head)


def translate(name: str, theirs: dict[str, str]) -> str:
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
            text = text.replace(", ".join(f"layer{n}" for n in range(first, last + 1)), f"layer{first}-{last}")
        words.append(f"{module}.{text}" if text else module)
    return "; ".join(words)
