"""Train a model, evaluating it as test.py does.

    python train.py --dataset sysu --gpu 0
    python train.py --resume save_model/..._last.t            goes on with a run
    python train.py --dataset regdb --trial 3 --resume auto   goes on with that run, or begins it
    torchrun --nproc-per-node 2 train.py ...                  one process a GPU
"""
from __future__ import annotations

import argparse
import glob
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import options
from checkpoint import Checkpoint, load_init, pretrained_weights, remove_old_epochs, save_checkpoint
from command_line import run
from data_loader import IdentitySampler, TrainBatches, fits_on_device, load_train_images
from data_manager import DATASETS
from datasets import arrays
from datasets.types import MODALITIES, ImageSpec, Search, TrainSplit
from devices import choose_device, prepare, require_compiler, start_processes, use_bf16
from engine import build_optimiser, evaluate, load_optimiser, set_learning_rate, train_one_epoch
from features import Extraction
from loss import Criterion
from model import TwoStream, build_network
from report import describe, epoch_line, estimate, show_batch, warn_of_stuck_triplet, warn_of_surprises
from utils import Interrupted, RunLog, UserError, as_user_error, git_commit, make_folder, versions, warn


def main(words: Sequence[str] | None = None) -> None:
    """Parse, build, and train epoch by epoch: train, evaluate, log, save."""
    args, saved = options.parse_train(words)
    device = choose_device(args.gpu)
    rank, processes = start_processes(device)
    prepare(device)
    split, searches = find_data(args)
    state = begin(args, saved, split, processes)
    sampler = IdentitySampler({modality: split.labels(modality) for modality in MODALITIES}, args.batch_size,
                              args.num_pos, args.seed, processes)
    net, criterion, optimiser = build(args, saved, state, device)
    log = open_log(args, state, sampler.steps, silent=rank > 0)
    with closing(log), saying_how_to_go_on(args, state, words):
        describe(log, args, state, net, split, searches, sampler)
        warn_of_surprises(args, split, searches, saved)
        spec = ImageSpec.from_arguments(vars(args))
        batches = make_batches(args, split, spec, sampler, net, device, rank)
        show_batch(log, args, state, batches)
        extraction = Extraction(spec, args.test_batch, args.workers, silent=log.silent)
        bf16 = use_bf16(device, args.amp, args.arch, spec)
        trained, judged = distribute(net, device, args.compile), distribute(criterion, device)
        if args.dry_run:
            return log(estimate(trained, judged, batches, optimiser, bf16, args.epochs))
        begun, first = time.perf_counter(), state.epoch
        for epoch in range(first, args.epochs):
            factor = set_learning_rate(optimiser, epoch, args.epochs, args.schedule)
            record = {"epoch": epoch, "lr": args.lr * factor}
            record |= train_one_epoch(trained, judged, batches, optimiser, epoch, bf16, log, args.print_freq,
                                      announced=args.epochs - first if epoch == first else 0)
            criterion.end_epoch(record)
            if searches and ((epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs):
                record |= evaluate(net, searches[0], extraction)
            left = (time.perf_counter() - begun) / (epoch + 1 - first) * (args.epochs - epoch - 1)
            log(epoch_line(record, args.epochs, left))
            log.epoch(record)
            if rank == 0:
                save_epoch(args, state, record, net, criterion, optimiser)
            warn_of_stuck_triplet(record, net.method)
        log(last_line(args, state))
    if dist.is_initialized():
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------ build
def find_data(args: argparse.Namespace) -> tuple[TrainSplit, list[Search]]:
    """The training split, and the search that training evaluates on, if the copy has test images."""
    data = DATASETS[args.dataset]
    split = data.train_split(args.data_path, **data.keywords("train_split", vars(args)))
    if not data.has(args.data_path, "test"):
        return split, []
    return split, data.searches(args.data_path, direction=args.direction, trials=data.trials(args.trial)[:1],
                                **data.keywords("searches", vars(args)))


def begin(args: argparse.Namespace, saved: Checkpoint | None, split: TrainSplit,
          processes: int) -> Checkpoint:
    """Where a run stands, without weights: at its beginning, or where the checkpoint left it.

    Raises `UserError` unless that checkpoint can be gone on from with these images and processes.
    """
    fresh = Checkpoint(net={}, args=vars(args), num_classes=len(split.pids), name=options.run_name(args),
                       trial=args.trial, fingerprint=arrays.fingerprint(split, args.data_path, args.arrays),
                       processes=processes, versions=versions(), commit=git_commit())
    if saved is None:
        return fresh
    for wrong, line in (
            (saved.optimiser is None, "weights only found (a best file), a last or epoch_N file expected; "
             "resume that"),
            (saved.fingerprint != fresh.fingerprint, f"trained on data {saved.fingerprint[:12]}, but "
             f"--data-path {args.data_path} is {fresh.fingerprint[:12]}; use the data of that run"),
            # a step sees as many identities as there are processes
            (saved.processes != processes, f"a run of {saved.processes} process(es) found, {processes} "
             f"started; go on with torchrun --nproc-per-node {saved.processes}")):
        if wrong:
            raise UserError(f"--resume {args.resume}: {line}, or begin a new run with --init")
    # files of earlier code hold no name
    name = saved.name or re.sub(r"_(last|epoch_\d+)\.t$", "", Path(args.resume).name)
    return replace(fresh, name=name, epoch=saved.epoch, best=saved.best, first_weights=saved.first_weights)


def build(args: argparse.Namespace, saved: Checkpoint | None, state: Checkpoint,
          device: torch.device) -> tuple[TwoStream, Criterion, torch.optim.Optimizer]:
    """Network, losses and optimiser as a run begins with them, or as its checkpoint left them."""
    torch.manual_seed(args.seed)
    method = options.method_of(args)
    if saved is not None:
        net = saved.network(args.resume)
        net.method = method
    elif args.init:
        net = build_network(method, args.arch, state.num_classes)
        state.first_weights = f"--init {args.init}: {load_init(net, args.init, args.dataset, args.trial)}"
    else:
        weights, line = pretrained_weights(args.pretrained, args.arch)
        net = build_network(method, args.arch, state.num_classes, weights)
        state.first_weights = f"--pretrained {line}"
    if args.sync_bn:
        if device.type != "cuda":
            raise UserError("--sync-bn: torch synchronises batch statistics on CUDA only, the run is on the "
                            "CPU; leave it out, or go on with such a run on CUDA")
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net = net.to(device, memory_format=torch.channels_last)
    criterion = Criterion(method.losses, state.num_classes, net.dim).to(device)
    optimiser = build_optimiser(net, criterion, args.lr, args.pretrained != "none" or bool(args.init),
                                args.optim)
    if saved is not None:
        with as_user_error(f"--resume {args.resume}: its optimiser does not fit this run",
                           "use another file, or begin a new run with --init"):
            criterion.load_state_dict(saved.criterion)
            load_optimiser(optimiser, saved.optimiser)
    return net, criterion, optimiser


def make_batches(args: argparse.Namespace, split: TrainSplit, spec: ImageSpec, sampler: IdentitySampler,
                 net: TwoStream, device: torch.device, rank: int) -> TrainBatches:
    """The training images, read into memory or onto the device, as batches."""
    images = load_train_images(split, args.data_path, spec, args.workers, args.arrays,
                               silent=rank > 0)
    resident = args.data_device == "gpu" or (args.data_device == "auto" and fits_on_device(images, device))
    return TrainBatches(images, sampler, net.method.views, device, resident, args.seed, rank)


def distribute(module: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """A module as training calls it: compiled where asked, its gradients averaged over processes."""
    if compiled:
        require_compiler(device)
        module.compile()
    if not dist.is_initialized() or not any(p.requires_grad for p in module.parameters()):
        return module
    return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


# ------------------------------------------------------------------------------------------------------ files
def path_of(args: argparse.Namespace, state: Checkpoint, kind: str) -> Path:
    """The file of a run's checkpoint: best, last or epoch_N."""
    return Path(args.model_path) / f"{state.name}_{kind}.t"


def open_log(args: argparse.Namespace, state: Checkpoint, steps: int, silent: bool) -> RunLog:
    """The log of a run whose files can be written; steps: of an epoch; silent: another process writes.

    Raises `UserError` for a new run whose files exist.
    """
    if args.dry_run or silent:
        return RunLog(None, None, state.name, silent=silent)
    folder, models = Path(args.log_path) / f"{args.dataset}_log", make_folder(args.model_path, "--model_path")
    name = glob.escape(state.name)
    kinds = [f"{name}_{kind}.t" for kind in ("last", "best", "epoch_[0-9]*")]
    earlier = [*(path for kind in kinds for path in models.glob(kind)), *folder.glob(f"{name}.jsonl")]
    if earlier and not (args.resume or args.overwrite):
        raise UserError(f"{earlier[0]}: a run of this name is there; go on with it by --resume auto, "
                        "replace it by --overwrite, or add a word by --name")
    for stray in (path for kind in kinds for path in models.glob(f".{kind}.*.tmp")):
        stray.unlink()  # half-written by a run that was killed
    if state.best["epoch"] >= 0 and not (best := path_of(args, state, "best")).exists():
        warn(f"{best}: not there; the best is counted anew from epoch {state.epoch + 1}")
        state.best = Checkpoint({}, {}, 0).best
    return RunLog(folder, Path(args.vis_log_path), state.name, state.epoch, state.epoch * steps + 1)


def save_epoch(args: argparse.Namespace, state: Checkpoint, record: dict[str, float], net: TwoStream,
               criterion: Criterion, optimiser: torch.optim.Optimizer) -> None:
    """Write the checkpoints of an epoch: `best` holds weights, `epoch_N` and `last` all that resuming needs.

    Raises `UserError` rather than write weights that are not finite, which no script would read again.
    """
    epoch, weights = record["epoch"] + 1, net.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"after epoch {epoch}: {name} is not finite; checkpoints of earlier epochs "
                            "stand; lower --lr, or use --amp off")
    better = record.get("bnneck/rank-1", -1.0) > state.best["rank-1"]
    if better:
        state.best = {"rank-1": record["bnneck/rank-1"], "mAP": record["bnneck/mAP"],
                      "epoch": record["epoch"]}
    whole = replace(state, epoch=epoch, net=weights, criterion=criterion.state_dict(),
                    optimiser=optimiser.state_dict())
    if better:
        save_checkpoint(path_of(args, state, "best"), replace(whole, optimiser=None))
    if epoch % args.save_epoch == 0:
        save_checkpoint(path_of(args, state, f"epoch_{epoch}"), whole)
        if args.keep:
            remove_old_epochs(Path(args.model_path), state.name, args.keep, epoch)
    save_checkpoint(path_of(args, state, "last"), whole)
    state.epoch = epoch


# ------------------------------------------------------------------------------------------------- the ends
def last_line(args: argparse.Namespace, state: Checkpoint) -> str:
    """The line of a run that has come to its end."""
    if state.best["epoch"] < 0:
        return f"done, without figures: {path_of(args, state, 'last')}"
    return (f"done: best Rank-1 {state.best['rank-1']:.2%} mAP {state.best['mAP']:.2%} in epoch "
            f"{state.best['epoch'] + 1}: {path_of(args, state, 'best')}")


@contextmanager
def saying_how_to_go_on(args: argparse.Namespace, state: Checkpoint,
                        words: Sequence[str] | None) -> Iterator[None]:
    """Add the command that goes on with the run to the line of a signal that ends it.

    Before the first checkpoint of this process, that begins it again: a last file may be another run's.
    """
    first = state.epoch
    try:
        yield
    except Interrupted as stop:
        program = ["python"] if state.processes == 1 else ["torchrun", "--nproc-per-node", state.processes]
        again = words or sys.argv[1:]
        if state.epoch > first:
            again = ["--resume", path_of(args, state, "last"), "--gpu", args.gpu]
        elif not (args.resume or args.overwrite):
            again = [*again, "--resume", "auto"]
        command = shlex.join(map(str, [*program, "train.py", *again]))
        raise Interrupted(stop.signum, f"stopped in epoch {state.epoch + 1}; go on with: {command}") from None


if __name__ == "__main__":
    run(main)
