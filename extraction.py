"""Whole searches: features of every image once, then the scores of each protocol."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data_loader import batches, normalise
from data_manager import Images, Protocol
from devices import precision, without_tf32
from eval_metrics import distance_matrix, evaluate, k_reciprocal_distance
from model import folded
from utils import UserError, warn

FEATURES = ("pool", "bnneck")  # after pooling, after BNNeck
RANKS = (1, 5, 10, 20)
NEARLY_IDENTICAL = 0.9999  # length of the mean of unit features

# ------------------------------------------------------------------------------------- features and whole searches
@dataclass(frozen=True)
class Extraction:
    """How features are taken: image size in pixels, batch, reader processes, device, precision, mirror images."""

    height: int
    width: int
    batch_size: int
    workers: int
    device: torch.device
    bf16: bool = False
    flip: bool = False
    silent: bool = True


@torch.inference_mode()
def extract_features(net: nn.Module, paths: Sequence[str], modality: str, how: Extraction,
                     check: Callable[[], None] = lambda: None) -> dict[str, np.ndarray]:
    """L2-normalised features of N image files of one modality: one (N, D) float32 for each of `FEATURES`.

    With `how.flip` the sum of the features of image and mirror, normalised again. `check` is called between batches and
    may raise to stop. With several processes each takes every n-th image and all of them return all features.
    """
    net = folded(net)
    rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = list(paths)[rank::count]
    found: dict[str, list[Tensor]] = {"pool": [], "bnneck": []}
    pin = how.device.type == "cuda"
    for images in tqdm(batches(mine, how.height, how.width, how.batch_size, how.workers, pin), modality,
                       -(-len(mine) // how.batch_size), unit="batch", leave=False, disable=how.silent or None):
        check()
        images = normalise(images.to(how.device, non_blocking=True))
        with precision(how.device, how.bf16), without_tf32():
            outputs = [net(**{modality: view}) for view in ((images, images.flip(3)) if how.flip else (images,))]
        for name, of in (("pool", "feats"), ("bnneck", "neck")):
            found[name].append(F.normalize(sum(F.normalize(getattr(output, of)) for output in outputs)))
    feats = {name: torch.cat(parts).cpu().numpy() if parts else np.empty((0, 0), np.float32) for name, parts in found.items()}
    return feats if count == 1 else merge_shards(feats, len(paths), count)


def merge_shards(feats: dict[str, np.ndarray], total: int, count: int) -> dict[str, np.ndarray]:
    """Put together what `count` processes took of every count-th image."""
    shards: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    dist.all_gather_object(shards, feats)
    merged = {}
    for name in feats:
        merged[name] = np.empty((total, max(shard[name].shape[1] for shard in shards)), np.float32)
        for rank, shard in enumerate(shards):
            if len(shard[name]):
                merged[name][rank::count] = shard[name]
    return merged


def search_features(net: nn.Module, protocols: Sequence[Protocol], how: Extraction,
                    check: Callable[[], None] = lambda: None) -> dict[str, dict[str, np.ndarray]]:
    """Features of every distinct image of some searches, once each: {path: its row} and the rows, by modality.

    Raises `UserError` naming an image whose features are not finite; warns where all are nearly the same.
    """
    taken = {}
    for modality in ("visible", "infrared"):
        paths = sorted({path for protocol in protocols for side in (protocol.query, protocol.gallery)
                        if side.modality == modality for path in side.paths})
        if paths:
            rows = {path: row for row, path in enumerate(paths)}
            taken[modality] = {"rows": rows, **extract_features(net, paths, modality, how, check)}
    check_features(taken)
    return taken


def check_features(taken: dict[str, dict]) -> None:
    """Refuse features that are not finite; warn of those whose mean is almost as long as each of them, which is 1."""
    alike = []
    for name, modality in itertools.product(FEATURES, taken):
        rows, feats = taken[modality]["rows"], taken[modality][name]
        broken = np.flatnonzero(~np.isfinite(feats).all(1))
        if len(broken):
            raise UserError(f"{list(rows)[broken[0]]}: its {name} feature is not finite; use sound weights, or --amp off")
        length = float(np.linalg.norm(feats.mean(0, dtype=np.float64)))
        if len(feats) > 1 and length > NEARLY_IDENTICAL:
            alike.append(f"{name} of {modality} images ({length:.6f})")
    if alike and not (dist.is_initialized() and dist.get_rank()):
        warn(f"all features are nearly identical (length of their mean, 1 if they are the same): {', '.join(alike)}; what they "
             "find is little more than chance: train longer, or with a lower --lr, or from pretrained weights")


def side_features(taken: dict[str, dict], side: Images, feature: str) -> np.ndarray:
    """The features (N, D) of one side of a search out of `search_features`."""
    of = taken[side.modality]
    return of[feature][[of["rows"][path] for path in side.paths]]


def score(taken: dict[str, dict], protocol: Protocol, feature: str, rerank: bool = False) -> dict[str, Any]:
    """CMC, mAP and mINP (fractions) of one search with one of the two features."""
    query, gallery = (side_features(taken, side, feature) for side in (protocol.query, protocol.gallery))
    dist_mat = k_reciprocal_distance(query, gallery) if rerank else distance_matrix(query, gallery)
    cmc, mean_ap, mean_inp = evaluate(dist_mat, protocol.query.pids, protocol.gallery.pids, protocol.query.camids,
                                      protocol.gallery.camids, exclude=protocol.exclude,
                                      count_persons=protocol.count_persons)
    return {"cmc": cmc.tolist(), "mAP": mean_ap, "mINP": mean_inp}


def headline(result: dict[str, Any]) -> dict[str, float]:
    """Rank-1/5/10/20, mAP and mINP of one search's result, as fractions."""
    ranks = {f"rank-{k}": result["cmc"][k - 1] for k in RANKS}
    return {**ranks, "mAP": result["mAP"], "mINP": result["mINP"]}


def show_percent(values: dict[str, float]) -> str:
    """Named fractions as per cent on one line."""
    return " ".join(f"{name} {value:.2%}" for name, value in values.items())
