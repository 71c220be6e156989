"""Features of image files: one loop from files to features, whatever computes them.

A network is here a function of a batch of pixels: `torch_network` makes one of a `TwoStream`, and
`retrieval.onnx_model` has one for onnxruntime. torch is imported only where there is a `TwoStream`.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from datasets.images import read_batches
from datasets.types import FEATURES, MODALITIES, Features, ImageSpec, Search
from utils import UserError, warn

if TYPE_CHECKING:
    from torch import nn

# (B, height, width, 3) uint8 -> features after pooling and after BNNeck, (B, D) float32 each, of unit length
Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
NEARLY_IDENTICAL = 0.9999  # length of the mean of unit features


@dataclass(frozen=True)
class Extraction:
    """How image files become features.

    workers: threads that read ahead, 0: none; bf16: whether torch computes in bfloat16; flip: the sum of the
    features of image and mirror image, normalised again; silent: no progress bar, and no warning.
    """

    spec: ImageSpec = ImageSpec()
    batch_size: int = 64
    workers: int = 4
    bf16: bool = False
    flip: bool = False
    silent: bool = True


# ------------------------------------------------------------------------------------------------ the network
def as_network(net: nn.Module | Network, modality: str, settings: Extraction) -> Network:
    """A `TwoStream`, or a function, as a function of images of one modality; flip: with the mirror image."""
    if hasattr(net, "parameters"):
        return torch_network(net, modality, settings.bf16, settings.flip)
    return with_mirror(net) if settings.flip else net


def torch_network(net: nn.Module, modality: str, bf16: bool = False, flip: bool = False) -> Network:
    """A copy of a `TwoStream`, on its device and with BatchNorm folded, as a function of one modality."""
    import torch
    from torch.nn.functional import normalize

    from data_loader import normalise
    from devices import precision, without_tf32
    from model import folded
    device, net = next(net.parameters()).device, folded(net)

    @torch.inference_mode()
    def compute(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = normalise(torch.from_numpy(images).to(device))
        with precision(device, bf16), without_tf32():
            outputs = [net(**{modality: view}) for view in ((pixels, pixels.flip(3)) if flip else (pixels,))]
        pool = normalize(sum(normalize(output.feats) for output in outputs))
        bnneck = normalize(sum(normalize(output.neck) for output in outputs))
        return pool.cpu().numpy(), bnneck.cpu().numpy()

    return compute


def with_mirror(network: Network) -> Network:
    """A network that adds the features of each image's mirror image, normalised again."""
    def compute(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pool, bnneck = map(np.add, network(images), network(np.ascontiguousarray(images[:, :, ::-1])))
        return unit_length(pool), unit_length(bnneck)

    return compute


def unit_length(feats: np.ndarray) -> np.ndarray:
    """Features (N, D) divided by their lengths."""
    return feats / np.maximum(np.linalg.norm(feats, axis=1, keepdims=True), 1e-12)


# --------------------------------------------------------------------------------------------------- the loop
def extract_batches(network: Network, paths: Sequence[str], settings: Extraction, title: str = "",
                    unreadable: dict[str, str] | None = None) -> Iterator[Features]:
    """Features of image files in their order, those of a batch at a time.

    network: as `as_network` makes it. title: of the progress bar. unreadable: takes the error of each file
    that cannot be read, which is left out then. Raises `UserError` naming a file that cannot be read.
    """
    reading = read_batches(paths, settings.spec, settings.batch_size, settings.workers, unreadable)
    bar = tqdm(total=len(paths), desc=title, unit="image", leave=False, disable=settings.silent or None)
    with closing(reading), bar:
        for start, images in zip(range(0, len(paths), settings.batch_size), reading):
            chunk = paths[start:start + settings.batch_size]
            names = tuple(path for path in chunk if not unreadable or path not in unreadable)
            if names:
                yield Features(names, *network(images))
            bar.update(len(chunk))


def extract(network: Network, paths: Sequence[str], settings: Extraction, title: str = "") -> Features:
    """Features of image files; arguments and errors are those of `extract_batches`."""
    return join(list(extract_batches(network, paths, settings, title)))


def join(parts: Sequence[Features]) -> Features:
    """Features of some images after those of others; (0, 0) arrays of none."""
    empty = [np.empty((0, 0), np.float32)]
    return Features(tuple(path for part in parts for path in part.paths),
                    *(np.concatenate([getattr(part, kind) for part in parts] or empty) for kind in FEATURES))


# --------------------------------------------------------------------------------------------- whole searches
def search_features(net: nn.Module, searches: Sequence[Search], settings: Extraction) -> dict[str, Features]:
    """Features of every distinct image of some searches by modality, on the network's device.

    Several processes share the images, and each returns the features of all. Raises `UserError` naming an
    image whose features are not finite; warns where all features are nearly the same.
    """
    found = {}
    for modality in MODALITIES:
        paths = sorted({path for search in searches for side in (search.query, search.gallery)
                        if side.modality == modality for path in side.paths})
        if paths:
            network = as_network(net, modality, settings)
            found[modality] = require_finite(extract_in_processes(network, paths, settings, modality))
    if not settings.silent:
        warn_of_alike(found)
    return found


def extract_in_processes(network: Network, paths: Sequence[str], settings: Extraction,
                         title: str) -> Features:
    """Features of image files, of which each process of a run takes every n-th."""
    import torch.distributed as dist
    if not dist.is_initialized():
        return extract(network, paths, settings, title)
    rank, count = dist.get_rank(), dist.get_world_size()
    shards: list[Features] = [None] * count
    dist.all_gather_object(shards, extract(network, paths[rank::count], settings, title))
    all_feats = join([shard for shard in shards if shard.paths])
    rows = {path: row for row, path in enumerate(all_feats.paths)}
    order = [rows[path] for path in paths]
    return Features(tuple(paths), all_feats.pool[order], all_feats.bnneck[order])


# ----------------------------------------------------------------------------------------------------- checks
def require_finite(features: Features) -> Features:
    """The same features; raises `UserError` naming the first image whose features are not finite."""
    for kind in FEATURES:
        broken = np.flatnonzero(~np.isfinite(getattr(features, kind)).all(1))
        if len(broken):
            raise UserError(f"{features.paths[broken[0]]}: its {kind} feature is not finite "
                            f"({len(broken)} of {len(features.paths)} such): values overflow where "
                            "running statistics lag behind the weights; use weights of a later epoch, or of "
                            "a run with a lower --lr, or --amp off")
    return features


def warn_of_alike(found: dict[str, Features]) -> None:
    """Warn of features whose mean is almost as long as they are, 1."""
    alike = []
    for kind, (modality, features) in itertools.product(FEATURES, found.items()):
        length = float(np.linalg.norm(getattr(features, kind).mean(0, dtype=np.float64)))
        if len(features.paths) > 1 and length > NEARLY_IDENTICAL:
            alike.append(f"{kind} of {modality} images ({length:.6f})")
    if alike:
        warn("all features are nearly identical (length of their mean, 1 if they are the same): "
             f"{', '.join(alike)}; what they find is little more than chance: train longer, or with a lower "
             "--lr, or from pretrained weights")
