"""What a training run says of itself: its beginning, its epochs, and what is surely unintended."""
from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from checkpoint import Checkpoint
from data_loader import IdentitySampler, TrainBatches
from data_manager import DATASETS
from datasets.images import MEAN, STD
from datasets.types import MODALITIES, Search, TrainSplit
from engine import duration, learning_rate_factor, train_steps
from results import unmatched_line
from two_stream import Method, TwoStream
from utils import RunLog, make_folder, warn

SHORT = 20  # epochs; a run of the step schedule that is no longer never lowers its rate


def describe(log: RunLog, args: argparse.Namespace, state: Checkpoint, net: TwoStream, split: TrainSplit,
             searches: list[Search], sampler: IdentitySampler) -> None:
    """Log what is about to run on what."""
    device = next(net.parameters()).device
    log(f"run {state.name}, recipe {args.recipe}, on {device}, {state.processes} process(es)")
    log.arguments(vars(args))
    log(f"{json.dumps({'versions': state.versions, 'commit': state.commit})} data {state.fingerprint[:16]}")
    log(f"first weights: {state.first_weights}")
    log(f"{DATASETS[args.dataset].title:<18} {'ids':>6} {'images':>8}")
    rows = [("train visible", split.visible), ("train infrared", split.infrared)]
    for search in searches:
        rows += [(f"query {search.query.modality}", search.query),
                 (f"gallery {search.gallery.modality}", search.gallery)]
    for name, images in rows:
        log(f"{name:<18} {len(set(images.pids.tolist())):>6} {len(images):>8}")
    for line in unmatched_line([(search.unmatched(), len(search.query)) for search in searches]):
        log(line)
    parameters = sum(p.numel() for p in net.parameters()) - net.classifier.weight.numel()
    losses = {name: {"weight": loss.weight, **loss.parameters} for name, loss in net.method.losses.items()}
    log(f"{args.method}: {parameters / 1e6:.2f} M parameters without classifier; losses {losses}; "
        f"{state.num_classes} classes, {sampler.steps} steps an epoch")
    log("best is chosen on the test images that it is reported on, as is usual in this field; last is not"
        if searches else "no test images: nothing is evaluated, and no best chosen")


def show_batch(log: RunLog, args: argparse.Namespace, state: Checkpoint, batches: TrainBatches) -> None:
    """Show the first augmented batch of each view in TensorBoard, or, of a dry run, in a file."""
    if log.silent:
        return
    views, _ = next(batches.epoch(state.epoch))
    pictures = {name: picture_of(images) for name, images in views.items()}
    for name, pixels in pictures.items():
        log.picture(f"batch/{name}", pixels)
    if args.dry_run:
        folder = make_folder(Path(args.log_path) / f"{args.dataset}_log", "--log_path")
        path = folder / f"{state.name}_batch.png"
        Image.fromarray(np.concatenate(list(pictures.values()), 1).transpose(1, 2, 0)).save(path)
        log(f"a batch, {', then '.join(pictures)}: {path}")


def picture_of(images: Tensor) -> np.ndarray:
    """The first 32 of normalised images (B, 3, height, width), eight in a row, (3, height, width) uint8."""
    from torchvision.utils import make_grid  # takes as long to import as torch itself
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = 255 * (images[:32].float().cpu() * std + mean)
    return make_grid(pixels.round().clamp(0, 255).byte(), 8, padding=0).numpy()


def estimate(net: nn.Module, criterion: nn.Module, batches: TrainBatches, optimiser: torch.optim.Optimizer,
             bf16: bool, epochs: int) -> str:
    """The time and memory of the run in words, after three steps, of which the first is slower."""
    times = [time.perf_counter()]
    for values in itertools.islice(train_steps(net, criterion, batches, optimiser, 0, bf16), 3):
        values["loss"].item()  # the host waits for the device here
        times.append(time.perf_counter())
    step = np.diff(times)[-2:].mean()
    epoch = step * len(batches)
    if batches.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(batches.device)
    else:
        import resource  # not on Windows
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (f"{batches.images_per_step} images a step, {step:.2f} s a step, {len(batches)} steps and "
            f"{duration(epoch)} an epoch, {duration(epoch * epochs)} for {epochs} epochs without evaluation; "
            f"{memory / 1e9:.1f} GB of memory at most so far")


def epoch_line(record: dict[str, float], epochs: int, left: float) -> str:
    """The figures of an epoch on one line of at most 110 characters; left: seconds to the end of the run."""
    words = [f"epoch {record['epoch'] + 1}/{epochs}", f"loss {record['loss']:.3f}",
             f"acc {record['accuracy']:.1%}"]
    if "bnneck/mAP" in record:
        pool, bnneck = (f"{kind} {100 * record[f'{kind}/rank-1']:.1f}/{100 * record[f'{kind}/mAP']:.1f}"
                        for kind in ("pool", "bnneck"))
        words += [pool, f"{bnneck} % Rank-1/mAP"]
    return "  ".join([*words, f"{record['seconds']:.0f} s", f"{duration(left)} left"])


def warn_of_surprises(args: argparse.Namespace, split: TrainSplit, searches: list[Search],
                      saved: Checkpoint | None) -> None:
    """Warn of what is legal but surely unintended."""
    for line in DATASETS[args.dataset].surprises(args.data_path, split, *searches[:1]):
        warn(line)
    if args.schedule == "step" and args.epochs <= SHORT:
        warn(f"--epochs {args.epochs}: --schedule step first lowers the rate in epoch 20, after the end of "
             "this run; --schedule cosine fits any length")
    by_length = args.schedule in ("cosine", "linear")
    if saved is not None and by_length and args.epochs != saved.args["epochs"]:
        then, now = (learning_rate_factor(saved.epoch, epochs, args.schedule) * args.lr
                     for epochs in (saved.args["epochs"], args.epochs))
        warn(f"--epochs {args.epochs}: the run began with --epochs {saved.args['epochs']}, and --schedule "
             f"{args.schedule} goes by its length: the rate of epoch {saved.epoch} is {now:.3g}, "
             f"not {then:.3g}")
    few = sum(int((np.bincount(split.labels(modality)) < args.num_pos).sum()) for modality in MODALITIES)
    if few:
        warn(f"{few} time(s) a person has fewer than --num_pos {args.num_pos} images of a modality: its "
             "images repeat in a batch")


def warn_of_stuck_triplet(record: dict[str, float], method: Method) -> None:
    """Warn if an epoch's triplet loss is its margin, or the weighted one ln 2: the network maps all images to
    one point. One that learns passes by ln 2 as well, so that only what is very near counts there.
    """
    margin = method.losses["triplet"].parameters.get("margin", 0.3) if "triplet" in method.losses else 0
    for name, value, near, what in (("triplet", margin, 0.005, "its margin"),
                                    ("weighted_triplet", math.log(2), 0.0005, "ln 2")):
        if value and abs(record.get(name, 0) - value) < near * value:
            warn(f"epoch {record['epoch'] + 1}: the {name.replace('_', ' ')} loss stayed at {what} "
                 f"({record[name]:.4f}): features do not differ; lower --lr or use pretrained weights")
