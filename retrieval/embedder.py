"""A file of weights, opened to embed images: a checkpoint, by torch, or a network of export.py."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.folders import require_range
from datasets.types import ImageSpec
from features import Extraction, Network, as_network
from retrieval.gallery import Record
from utils import UserError, sha256


@dataclass(frozen=True)
class Embedder:
    """What computes the features of images of one modality, and the record of what it makes of them."""

    network: Network
    record: Record


def open_embedder(path: str, modality: str, *, flip: bool = False, gpu: str | None = None, amp: str = "off",
                  **form: Any) -> Embedder:
    """Open a checkpoint, or a network of export.py.

    gpu: None for the first one, or the CPU where there is none. form: img_h, img_w and range as the command
    line gives them, None for the checkpoint's. Raises `UserError` for another form than the checkpoint's, and
    for flags that have no effect.
    """
    net, facts = (open_onnx(path, gpu, amp) if path.endswith(".onnx") else
                  open_checkpoint(path, gpu or "0", amp))
    spec = choose_spec(path, {"modality": modality, **form}, facts)
    network = as_network(net, modality, Extraction(spec, bf16=facts["precision"] == "bf16", flip=flip))
    return Embedder(network, Record(facts["sha256"], facts["method"], spec.height, spec.width, flip, modality,
                                    facts["precision"], range=spec.range))


def open_onnx(path: str, gpu: str | None, amp: str) -> tuple[Network, Mapping[str, Any]]:
    """A network of export.py as a function, and what its file says of it."""
    from retrieval import onnx_model
    for flag, idle in (("--gpu", gpu in (None, "cpu")), ("--amp", amp == "off")):
        if not idle:
            raise UserError(f"{flag}: no effect, as onnxruntime computes {path} on the CPU, in the precision "
                            "that it was exported in; leave it out")
    model = onnx_model.load(path)
    return model.features, {**vars(model.facts), "img_h": model.facts.height, "img_w": model.facts.width}


def open_checkpoint(path: str, gpu: str, amp: str) -> tuple[Any, Mapping[str, Any]]:
    """A checkpoint's network on its device, and what the file says of it."""
    import checkpoint  # with torch, which takes a second to load: mistakes in the arguments are found before
    from devices import choose_device, prepare, use_bf16
    net, facts = checkpoint.load_network(path)
    device = choose_device(gpu)
    prepare(device)
    bf16 = use_bf16(device, amp, facts["arch"], ImageSpec.from_arguments(facts))
    return net.to(device), {**facts, "precision": "bf16" if bf16 else "float32", "sha256": sha256(Path(path))}


def choose_spec(path: str, form: Mapping[str, Any], facts: Mapping[str, Any]) -> ImageSpec:
    """The form of the images; raises `UserError` where the command line's is not the file's."""
    require_range(form.get("range"))
    given = {name: value for name, value in form.items() if value}
    for name, value in given.items():
        mine, theirs = (" ".join(map(str, each)) if isinstance(each, (list, tuple)) else str(each)
                        for each in (value, facts.get(name)))
        if facts.get(name) and mine != theirs:
            made = "exported" if path.endswith(".onnx") else "trained"
            raise UserError(f"--{name} {mine}: the checkpoint {path} was {made} with --{name} {theirs}; "
                            "leave the flag out, or name another file")
    return ImageSpec.from_arguments({**facts, **given})
