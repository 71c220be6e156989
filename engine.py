"""The engine: an epoch of training, optimiser, schedule and meters; scores of whole searches."""
from __future__ import annotations

import math
import signal
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from data_loader import TrainBatches
from datasets.types import Features, Search
from devices import precision
from eval_metrics import Ranking, distance_matrix, k_reciprocal_distance, rank_queries
from features import NotFinite
from loss import Criterion
from model import TwoStream
from results import Scores
from utils import Interrupted, Log, show


# --------------------------------------------------------------------------------------------------- training
def learning_rate_factor(epoch: int, epochs: int, schedule: str) -> float:
    """Factor on the learning rate of an epoch.

    `step`, the paper's, whatever the length: linear warm-up over epochs 0-9, then 1, 0.1 from 20 and 0.01
    from 50 of 80. `cosine`, for runs of any length: linear warm-up over the first eighth, times half a cosine
    from 1 to 0.
    """
    if schedule == "cosine":
        return min(1.0, 8 * (epoch + 1) / epochs) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return (epoch + 1) / 10 if epoch < 10 else 1.0 if epoch < 20 else 0.1 if epoch < 50 else 0.01


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


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to `factor` times its own first one."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Put back what an optimiser had accumulated, for the same parameters in their order; rates stay.

    Raises ValueError for another number of parameters.
    """
    own = optimiser.state_dict()
    counts = [sum(len(group["params"]) for group in groups)
              for groups in (own["param_groups"], state["param_groups"])]
    if counts[0] != counts[1]:
        raise ValueError(f"{counts[1]} parameters, {counts[0]} expected")
    optimiser.load_state_dict({"state": state["state"], "param_groups": own["param_groups"]})


class Meters:
    """Scalars of each step of an epoch, kept on the device until they are read.

    One float64 row of sums for the epoch, and the rows since the last `read`, to find the step that went
    wrong. What is read is the mean over all processes, which read together.
    """

    def __init__(self, sums: dict[str, float] | None = None, steps: int = 0) -> None:
        self.steps = steps
        self.sums = dict(sums or {})
        self.names: list[str] = list(self.sums)
        self.rows: list[Tensor] = []

    def add(self, values: dict[str, Tensor]) -> None:
        """Keep one step's scalars (0-dim tensors)."""
        self.names = list(values)
        self.rows.append(torch.stack([value.detach().float() for value in values.values()]))
        self.steps += 1

    def read(self) -> int | None:
        """Fetch the rows since the last call; the index in the epoch of the first that is not finite."""
        if not self.rows:
            return None
        rows = torch.stack(self.rows)
        if dist.is_initialized():
            rows = rows.double() / dist.get_world_size()
            dist.all_reduce(rows)
        rows = rows.cpu().double().numpy()  # there: MPS has no float64
        first = self.steps - len(rows)
        self.rows = []
        for row in rows:
            self.sums = {name: self.sums.get(name, 0.0) + float(value)
                         for name, value in zip(self.names, row)}
        self.last = dict(zip(self.names, rows[-1].tolist()))
        broken = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(broken):
            self.last = dict(zip(self.names, rows[broken[0]].tolist()))
            return first + int(broken[0])
        return None

    def means(self) -> dict[str, float]:
        """Mean of each scalar over the steps read so far."""
        return {name: total / self.steps for name, total in self.sums.items()}


class StopRequest:
    """Notes SIGINT and SIGTERM so that a run ends at the end of a step; a second signal ends it at once.

    noted: the signal that came to this process. signum: the one that all processes have agreed to stop for,
    so that none stops alone while the others wait for it.
    """

    def __init__(self) -> None:
        self.noted: int | None = None
        self.signum: int | None = None
        # hosts agree among themselves: a word through NCCL would make each wait for its device
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.note)

    def note(self, signum: int, frame: object) -> None:
        """Handle a signal."""
        if self.noted is not None:
            raise Interrupted(signum, "interrupted twice: stopped at once; the last checkpoint stands")
        self.noted = signum

    def asked(self) -> bool:
        """Whether to stop: a signal came to this process or, where several ask together, to any of them."""
        self.signum = self.noted
        if self.group is not None:
            signum = torch.tensor(self.noted or 0)
            dist.all_reduce(signum, dist.ReduceOp.MAX, self.group)
            self.signum = int(signum) or None
        return self.signum is not None

    def raise_if_asked(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.asked():
            raise Interrupted(self.signum, "stopped")


def train_steps(net: nn.Module, criterion: nn.Module, data: TrainBatches, optimiser: torch.optim.Optimizer,
                epoch: int, start: int = 0, bf16: bool = False) -> Iterator[dict[str, Tensor]]:
    """Train from step `start` of an epoch on; yields losses and accuracy, 0-dim tensors on the device.

    Nothing here makes the host wait for the device.
    """
    net.train()
    for views, labels in data.epoch(epoch, start):
        with precision(data.device, bf16):
            output = net(**views)
        loss, parts = criterion(output, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        right = output.logits.argmax(1) == labels.repeat(len(views))
        yield {"loss": loss, **parts, "accuracy": right.float().mean()}


def train_one_epoch(steps: Iterator[dict[str, Tensor]], total: int, meters: Meters, stop: StopRequest,
                    log: Log, epoch: int, read_every: int) -> int:
    """Take the steps of an epoch, with a progress bar; returns how many, fewer where a signal asked to stop.

    The meters, which begin at the steps done before, are read every `read_every` steps, when the host waits
    for the device. Raises `NotFinite` if a loss is not finite.
    """
    bar = tqdm(total=total, initial=meters.steps, desc=f"epoch {epoch}", unit="step", leave=False,
               disable=log.silent or None)
    with bar:
        for values in steps:
            meters.add(values)
            bar.update()
            stopping = stop.asked()
            if stopping or meters.steps % read_every == 0 or meters.steps == total:
                read_meters(meters, epoch)
                bar.set_postfix(loss=f"{meters.last['loss']:.3f}")
                if bar.disable and meters.steps < total:
                    log(f"epoch {epoch} step {meters.steps}/{total} " + show(meters.means()))
            if stopping:
                break
    steps.close()
    return meters.steps


def read_meters(meters: Meters, epoch: int) -> None:
    """Fetch the meters; raise `NotFinite` with step and losses if a loss was not finite."""
    broken = meters.read()
    if broken is not None:
        raise NotFinite(f"epoch {epoch}, step {broken + 1}: the loss is not finite ({show(meters.last)})")


# --------------------------------------------------------------------------------------------- whole searches
def distances(found: dict[str, Features], search: Search, kind: str, rerank: bool = False) -> np.ndarray:
    """Distances (Q, G) of one search with one kind of features."""
    query, gallery = (found[side.modality].take(side, kind) for side in (search.query, search.gallery))
    return k_reciprocal_distance(query, gallery) if rerank else distance_matrix(query, gallery)


def rank(found: dict[str, Features], search: Search, kind: str, rerank: bool = False) -> Ranking:
    """What each query of one search finds with one kind of features."""
    return rank_queries(distances(found, search, kind, rerank), search.query.pids, search.gallery.pids,
                        search.seen(), count_persons=search.count_persons)


def score(found: dict[str, Features], search: Search, kind: str) -> Scores:
    """CMC, mAP and mINP of one search with one kind of features."""
    return scores_of(rank(found, search, kind))


def scores_of(ranking: Ranking) -> Scores:
    """CMC, mAP and mINP of what the queries of a search found."""
    cmc, mean_ap, mean_inp = ranking.summary()
    return Scores(tuple(cmc.tolist()), mean_ap, mean_inp)
