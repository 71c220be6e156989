"""The engine of training: network and optimiser from arguments, schedule, and the loop over an epoch's steps."""
from __future__ import annotations

import argparse
import contextlib
import math
import signal
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from checkpoint import load_init, network_of, pretrained_weights
from data_loader import TrainBatches
from devices import Meters, precision
from loss import method_loss
from model import TwoStream
from utils import Interrupted, Log, UserError


def build_network(args: argparse.Namespace, saved: dict[str, Any] | None, classes: int, log: Log,
                  device: torch.device) -> TwoStream:
    """A new network with the first weights that the arguments name, or the one of a checkpoint."""
    if saved is not None:
        net = network_of(saved, args.resume)
    elif args.init:
        net = TwoStream(args.method, args.arch, classes)
        left_out = load_init(net, args.init, args.dataset, args.trial)
        log(f"--init {args.init}: " + (f"left out {', '.join(left_out)}" if left_out else "every key used"))
    else:
        net = TwoStream(args.method, args.arch, classes, pretrained_weights(args.pretrained, args.arch))
    if args.sync_bn:
        if device.type != "cuda":
            raise UserError("--sync-bn: torch synchronises batch statistics on CUDA only, the run is on the CPU; leave it "
                            "out, or go on with such a run on CUDA")
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return net.to(device, memory_format=torch.channels_last)


def learning_rate_factor(epoch: int, epochs: int, schedule: str) -> float:
    """Factor on the learning rate of an epoch.

    `step`, the paper's, whatever the length: linear warm-up over epochs 0-9, then 1, 0.1 from 20 and 0.01 from 50 of 80.
    `cosine`, for runs of any length: linear warm-up over the first eighth, times half a cosine from 1 to 0.
    """
    if schedule == "cosine":
        return min(1.0, 8 * (epoch + 1) / epochs) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return (epoch + 1) / 10 if epoch < 10 else 1.0 if epoch < 20 else 0.1 if epoch < 50 else 0.01


def build_optimiser(net: TwoStream, args: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam; one fused kernel where the device has it."""
    groups = net.parameter_groups(args.lr, args.pretrained != "none" or args.init is not None, args.optim)
    for group in groups:
        group["initial_lr"] = group["lr"]
    if args.optim == "adam":
        return torch.optim.Adam(groups, weight_decay=5e-4, fused=True)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


class StopRequest:
    """Notes SIGINT and SIGTERM so that a run ends at the end of a step; a second signal ends it at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.note)

    def note(self, signum: int, frame: object) -> None:
        """Handle a signal."""
        if self.signum is not None:
            raise Interrupted(signum, "interrupted twice: stopped at once; the last checkpoint stands")
        self.signum = signum

    def agree(self, device: torch.device) -> None:
        """Tell all processes of a signal that one of them has had."""
        asked = torch.tensor(self.signum or 0, device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        self.signum = int(asked) or None

    def raise_if_asked(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum, "stopped")


def train_one_epoch(net: nn.Module, batches: TrainBatches, optimiser: torch.optim.Optimizer, epoch: int, start: int,
                    meters: Meters, args: argparse.Namespace, device: torch.device, bf16: bool, stop: StopRequest,
                    log: Log) -> int:
    """Steps `start` to the end of an epoch; returns the number of steps done, fewer where a signal asked to stop.

    Nothing here makes the host wait for the device but the reading of the meters every `--print-freq` steps. Raises
    `NotFinite` if a loss is not finite.
    """
    net.train()
    bar = tqdm(total=len(batches), initial=start, desc=f"epoch {epoch}", unit="step", leave=False, disable=log.silent or None)
    with bar, contextlib.closing(batches.epoch(epoch, start)) as steps:
        for step, (visible, infrared, labels) in enumerate(steps, start + 1):
            with precision(device, bf16):
                output = net(visible, infrared)
            total, parts = method_loss(args.method, output, labels.repeat(2), args.margin)
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            meters.add({"loss": total, **parts, "accuracy": (output.logits.argmax(1) == labels.repeat(2)).float().mean()})
            bar.update()
            reading = step % args.print_freq == 0 or step == len(batches)
            if reading:
                read_meters(meters, epoch)
                bar.set_postfix(loss=f"{meters.last['loss']:.3f}")
                if bar.disable and step < len(batches):
                    log(f"epoch {epoch} step {step}/{len(batches)} " + show(meters.means()))
            if stop_here(stop, device, reading):
                read_meters(meters, epoch)
                return step
    return len(batches)


def stop_here(stop: StopRequest, device: torch.device, reading: bool) -> bool:
    """Whether to stop after this step; several processes agree on it, on CUDA where they wait for their meters anyway."""
    if dist.is_initialized():
        if device.type == "cuda" and not reading:
            return False
        stop.agree(device)
    return stop.signum is not None


class NotFinite(Exception):
    """A step's loss was NaN or infinite."""


def read_meters(meters: Meters, epoch: int) -> None:
    """Fetch the meters; raise `NotFinite` with step and losses if a loss was not finite."""
    broken = meters.read()
    if broken is not None:
        raise NotFinite(f"epoch {epoch}, step {broken + 1}: the loss is not finite ({show(meters.last)})")


def show(values: dict[str, float]) -> str:
    """Named numbers on one line."""
    return " ".join(f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4g}" for name, value in values.items())
