"""The engine: optimiser, schedule, an epoch of training; rankings and scores of a search."""
from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from bootstrap import QueryScores
from data_loader import TrainBatches, step_seed
from datasets.types import MODALITIES, Features, Search
from devices import precision
from eval_metrics import (Ranking, distance_matrix, k_reciprocal_distance, modality_gap,
                          rank_queries)
from features import Extraction, search_features
from loss import Criterion
from results import FEATURES, Scores
from retrieval.verification import Pairs, make_pairs
from two_stream import TwoStream
from utils import RunLog, UserError


# ---------------------------------------------------------------------------------------- optimiser, schedule
def learning_rate_factor(epoch: int, epochs: int, schedule: str) -> float:
    """Factor on the learning rate of an epoch.

    `step`, the paper's, whatever the length: linear warm-up over epochs 0-9, then 1, 0.1 from 20 and 0.01
    from 50 of 80. `step-80` (DEEN): 0.01 from 80. `cosine`, for runs of any length: linear warm-up over the
    first eighth, times half a cosine from 1 to 0. `linear` (DNS), of any length: from 1e-4 up to 1 at 16 %,
    then down to 0, by the middle of the epoch; DNS's code sets it at each step.
    """
    if schedule == "linear":
        return float(np.interp((epoch + 0.5) / epochs, (0, 0.16, 1), (1e-4, 1, 0)))
    if schedule == "cosine":
        return min(1.0, 8 * (epoch + 1) / epochs) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    last = 80 if schedule == "step-80" else 50
    return (epoch + 1) / 10 if epoch < 10 else 1.0 if epoch < 20 else 0.1 if epoch < last else 0.01


def build_optimiser(net: TwoStream, criterion: Criterion, lr: float, pretrained: bool,
                    optim: str) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam, for a network and what its losses learn; fused kernels.

    pretrained: whether the backbone begins with weights, so that it learns at a tenth of the rate.
    """
    groups = net.parameter_groups(lr, pretrained, optim)
    if learnt := list(criterion.parameters()):
        groups.append({"params": learnt, "lr": lr})
    for group in groups:
        group["initial_lr"] = group["lr"]
    if optim == "adam":
        return torch.optim.Adam(groups, weight_decay=5e-4, fused=True)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, epoch: int, epochs: int, schedule: str) -> float:
    """Set the rate of every group to that of an epoch, and return its factor on their first ones."""
    factor = learning_rate_factor(epoch, epochs, schedule)
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return factor


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Put back what an optimiser had accumulated, for the same parameters in their order; rates stay.

    The file may have other groups of them, as earlier code made them. Raises ValueError for another number
    of parameters.
    """
    own = optimiser.state_dict()
    counts = [sum(len(group["params"]) for group in groups)
              for groups in (own["param_groups"], state["param_groups"])]
    if counts[0] != counts[1]:
        raise ValueError(f"{counts[1]} parameters, {counts[0]} expected")
    optimiser.load_state_dict({"state": state["state"], "param_groups": own["param_groups"]})


# --------------------------------------------------------------------------------------------------- training
class Meters:
    """Means over the steps of an epoch of some scalars, which stay on the device until they are read."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch, self.steps, self.sums = epoch, 0, 0.0
        self.names: list[str] = []
        self.unread: list[Tensor] = []
        self.last: dict[str, float] = {}  # the scalars of the last step that was read

    def add(self, values: dict[str, Tensor]) -> None:
        """Keep one step's scalars (0-dim tensors)."""
        self.names = list(values)
        self.unread.append(torch.stack([value.detach().float() for value in values.values()]))

    def read(self) -> dict[str, float]:
        """The means so far, over all processes, which read together; the host waits for the device here.

        Raises `UserError` naming the first step since the last call whose scalars are not finite.
        """
        rows = torch.stack(self.unread)
        if dist.is_initialized():
            rows = rows.double() / dist.get_world_size()
            dist.all_reduce(rows)
        rows = rows.cpu().double().numpy()  # there: MPS has no float64
        broken = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(broken):
            values = show(dict(zip(self.names, rows[broken[0]].tolist())))
            raise UserError(f"epoch {self.epoch + 1}, step {self.steps + broken[0] + 1}: the loss is not "
                            f"finite ({values}); checkpoints of earlier epochs stand; lower --lr, or use "
                            "--amp off")
        self.sums, self.steps, self.unread = self.sums + rows.sum(0), self.steps + len(rows), []
        self.last = dict(zip(self.names, rows[-1].tolist()))
        return dict(zip(self.names, (self.sums / self.steps).tolist()))


def train_steps(net: nn.Module, criterion: nn.Module, batches: TrainBatches,
                optimiser: torch.optim.Optimizer, epoch: int,
                bf16: bool = False) -> Iterator[dict[str, Tensor]]:
    """Train an epoch; yield losses and accuracy of each step, 0-dim tensors on the device.

    Nothing here makes the host wait for the device.
    """
    net.train()
    torch.manual_seed(step_seed(batches.seed, epoch, batches.rank))  # dropout draws alike in a resumed run
    for views, labels in batches.epoch(epoch):
        with precision(batches.device, bf16):
            output = net(**views)
        loss, parts = criterion(output, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        right = output.logits.argmax(1) == labels.repeat(len(output.logits) // len(labels))
        yield {"loss": loss, **parts, "accuracy": right.float().mean()}


def train_one_epoch(net: nn.Module, criterion: nn.Module, batches: TrainBatches,
                    optimiser: torch.optim.Optimizer, epoch: int, bf16: bool, log: RunLog,
                    read_every: int, announced: int = 0) -> dict[str, float]:
    """Train an epoch with a progress bar; the means of its losses, its seconds, and images a second.

    Figures are read every `read_every` steps, when the host waits for the device, and go to TensorBoard.
    announced: epochs whose time is estimated after three steps and logged, 0 for none. Raises `UserError` if
    a loss is not finite.
    """
    begun, meters = time.perf_counter(), Meters(epoch)
    steps = train_steps(net, criterion, batches, optimiser, epoch, bf16)
    bar = tqdm(steps, f"epoch {epoch + 1}", len(batches), unit="step", leave=False,
               disable=log.silent or None)
    for step, values in enumerate(bar, 1):
        meters.add(values)
        due, early = step % read_every == 0 or step == len(batches), announced > 0 and step == 3
        if due or early:
            means = meters.read()
        if early:
            seconds = announced * len(batches) * (time.perf_counter() - begun) / step
            log(f"about {duration(seconds)} for {announced} epochs of {len(batches)} steps")
        if due:
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            speed = step * batches.images_per_step / (time.perf_counter() - begun)
            log.step(epoch * len(batches) + step, {**meters.last, **rates_and_gammas(net, optimiser),
                                                   "images_per_s": speed})
            if bar.disable and step < len(batches):
                log(f"epoch {epoch + 1} step {step}/{len(batches)} {show(means)}")
    seconds = time.perf_counter() - begun
    images = len(batches) * batches.images_per_step * batches.sampler.processes
    return {**means, "seconds": round(seconds, 3), "images_per_s": round(images / seconds, 1)}


def rates_and_gammas(net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """The largest learning rate, and each gamma of the network's modules."""
    gammas = {name: value for name, value in net.named_parameters() if name.endswith("gamma")}
    return {"lr": max(group["lr"] for group in optimiser.param_groups),
            **{f"{name}.{number}": each for name, value in gammas.items()
               for number, each in enumerate(value.tolist())}}


def duration(seconds: float) -> str:
    """A time in minutes or hours."""
    return f"{seconds / 3600:.3g} h" if seconds > 3600 else f"{seconds / 60:.0f} min"


def show(values: dict[str, float]) -> str:
    """Named numbers on one line."""
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


# ------------------------------------------------------------------------------------------------- evaluation
def evaluate(net: TwoStream, search: Search, settings: Extraction) -> dict[str, float]:
    """Figures of one search with either feature, by FEATURE/MEASURE, as test.py finds them.

    Of several processes, all take the running statistics of the first.
    """
    if dist.is_initialized():
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
    found = search_features(net, [search], settings)
    return {f"{kind}/{name}": value for kind in FEATURES
            for name, value in scores_of(rank(found, search, kind)).headline().items()}


def distances(found: dict[str, Features], search: Search, kind: str, rerank: bool = False) -> np.ndarray:
    """Distances (Q, G) of one search with one kind of features."""
    query, gallery = (found[side.modality].take(side, kind) for side in (search.query, search.gallery))
    return k_reciprocal_distance(query, gallery) if rerank else distance_matrix(query, gallery)


def rank(found: dict[str, Features], search: Search, kind: str, rerank: bool = False) -> Ranking:
    """What each query of one search finds with one kind of features."""
    return rank_queries(distances(found, search, kind, rerank), search.query.pids, search.gallery.pids,
                        search.seen(), count_persons=search.count_persons)


def scores_of(ranking: Ranking) -> Scores:
    """CMC, mAP and mINP of what the queries of a search found."""
    cmc, mean_ap, mean_inp = ranking.summary()
    return Scores(tuple(cmc.tolist()), mean_ap, mean_inp)


def query_scores(searches: list[Search], persons: np.ndarray,
                 rankings: list[dict[str, Ranking]]) -> QueryScores:
    """Each query's scores in each draw."""
    draws = np.repeat([search.trial for search in searches], [len(search.query) for search in searches])
    first, ap = ({kind: np.concatenate([getattr(trial[kind], name) for trial in rankings]).astype(dtype)
                  for kind in rankings[0]} for name, dtype in (("first", np.int32), ("ap", np.float32)))
    return QueryScores(draws.astype(np.int16), persons.astype(np.int32), first, ap)


def find_pairs(features: dict[str, Features], search: Search, kind: str) -> Pairs:
    """The genuine and impostor pairs that a search sees."""
    same = search.query.pids[:, None] == search.gallery.pids
    return make_pairs(1 - distances(features, search, kind), search.seen(), same)


def find_gap(features: dict[str, Features], search: Search, kind: str) -> dict[str, float]:
    """How far apart the modalities lie in a search."""
    sides = {side.modality: side for side in (search.query, search.gallery)}
    return modality_gap(*(features[modality].take(sides[modality], kind) for modality in MODALITIES))
