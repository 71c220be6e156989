"""Train a model, evaluating it as test.py does.

    python train.py --dataset sysu --gpu 0
    python train.py --resume save_model/..._last.t        goes on with a run
    python train.py --dataset regdb --trial all           ten models, one after the other, and their mean
    torchrun --nproc-per-node 2 train.py ...              one process a GPU
"""
from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import options
from checkpoint import (Checkpoint, load_checkpoint, load_init, pretrained_weights, remove_old_epochs,
                        save_checkpoint, warn_of_best)
from data_loader import IdentitySampler, TrainBatches, TrainImages, fits_on_device, load_train_images
from data_manager import DATASETS
from datasets import arrays
from datasets.types import EVERY, MODALITIES, ImageSpec, Search, TrainSplit
from devices import (Processes, choose_device, prepare, require_compiler, seed_everything, start_processes,
                     stop_processes, use_bf16)
from engine import (Meters, StopRequest, build_optimiser, learning_rate_factor, load_optimiser, score,
                    set_learning_rate, train_one_epoch, train_steps)
from features import Extraction, NotFinite, search_features
from loss import Criterion
from model import METHODS, Method, TwoStream, build_network
from results import FEATURES, show_percent, unmatched_line
from utils import (Interrupted, RunFiles, UserError, atomic_path, explain, git_commit, one_line, parse_given,
                   run, versions, warn)

SHORT = 20  # epochs; a run of the step schedule that is no longer never lowers its rate


@dataclass(frozen=True)
class Training:
    """What is trained, how, and where it stands. state: all of its checkpoint but what net, criterion and
    optimiser hold."""

    args: argparse.Namespace
    state: Checkpoint
    files: RunFiles
    device: torch.device
    bf16: bool
    net: TwoStream
    criterion: Criterion
    optimiser: torch.optim.Optimizer


def main(words: Sequence[str] | None = None) -> None:
    """Train from the arguments of the command line."""
    args, saved = parse_arguments(words)
    if args.trial == EVERY:
        return train_every_trial(args)
    device = choose_device(args.gpu)
    if args.data_device == "gpu" and device.type == "cpu":
        raise UserError("--data-device gpu: the run is on the CPU; leave it out")
    processes = start_processes(device)
    prepare(device)
    data = DATASETS[args.dataset]
    searches = []
    if args.test_only or data.can_test(args.data_path):
        searches = data.searches(args.data_path, direction=args.direction, trials=data.trials(args.trial)[:1],
                                 **data.keywords("searches", vars(args)))
    if args.test_only:
        return test_only(args, saved, searches, device, processes)
    split = data.train_split(args.data_path, **data.keywords("train_split", vars(args)))
    state = begin(args, saved, split, arrays.fingerprint(split, args.data_path, args.arrays), processes)
    sampler = IdentitySampler({modality: split.labels(modality) for modality in MODALITIES}, args.batch_size,
                              args.num_pos, args.seed, processes.count)
    with run_files(state.name, args, processes, saved) as files:
        training = set_up(args, saved, state, files, sampler, device)
        describe_run(training, split, searches, sampler)
        if files.writes:
            warn_of_surprises(args, files, split, searches, saved)
            take_best_along(args, state, files)
        files.open_board(state.epoch)
        if args.compile:
            require_compiler(device)
        images = load_train_images(split, args.data_path, ImageSpec.from_arguments(vars(args)),
                                   args.workers, args.arrays, silent=files.log.silent)
        train(training, searches, TrainBatches(images, sampler, training.net.method.views, device,
                                               keep_on_device(args, images, device), args.seed,
                                               processes.rank))
    stop_processes()


def train(training: Training, searches: list[Search], batches: TrainBatches) -> None:
    """Train from where the run stands to its last epoch; raises `Interrupted` where a signal asks to stop."""
    args, state, files = training.args, training.state, training.files
    net, criterion = (wrap(training.net, args.compile, training.device),
                      wrap(training.criterion, False, training.device))
    stop = StopRequest()
    for epoch in range(state.epoch, args.epochs):
        factor = learning_rate_factor(epoch, args.epochs, args.schedule)
        set_learning_rate(training.optimiser, factor)
        steps = train_steps(net, criterion, batches, training.optimiser, epoch, state.step, training.bf16)
        record = {"epoch": epoch, "lr": args.lr * factor,
                  **train_epoch(steps, state, batches, stop, files, args.print_freq)}
        if stop.signum is not None:
            save("last", training)
            raise stopped(stop, state, batches, files)
        warn_of_stuck_triplet(record, training.net.method)
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            save("last", training)  # whatever happens to the evaluation, the epoch is not lost
            try:
                record |= evaluate(training, searches, stop)
            except Interrupted:
                raise stopped(stop, state, batches, files) from None
        finish_epoch(record, training)
    best = state.best
    files.log(f"done: best Rank-1 {best['rank-1']:.2%} mAP {best['mAP']:.2%} in epoch {best['epoch']}: "
              f"{files.path('best')}" if best["epoch"] >= 0
              else f"done, without figures: {files.path('last')}")
    stop.group = None  # else the handler of signals keeps its threads alive until Python has ended


# ---------------------------------------------------------------------------------------------- the beginning
def parse_arguments(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, Checkpoint | None]:
    """The arguments, and the checkpoint to go on from: what it says and no flag does comes from the file.

    Raises `UserError` naming both where a flag contradicts the file, or another flag.
    """
    parser = options.train_parser()
    args, given = parse_given(parser, words)
    options.apply_recipe(args, given)
    saved = None
    if args.test_only and not args.resume:
        raise UserError("--test-only: no --resume given; name the checkpoint to test")
    if args.resume and args.init:
        raise UserError("--resume goes on with a run and --init begins a new one from its weights; "
                        "give one of them")
    if args.init and "pretrained" in given and args.pretrained != "none":
        raise UserError(f"--pretrained {args.pretrained} and --init {args.init} both say which weights to "
                        "begin with; give one")
    if args.trial == EVERY and args.resume:
        raise UserError(f"--trial {EVERY} goes on where it was stopped without --resume; "
                        "leave one of them out")
    if args.resume:
        saved = load_checkpoint(args.resume)
        options.reconcile(parser, args, given, saved.args, args.resume)
        if args.epochs < saved.epoch:
            raise UserError(f"--epochs {args.epochs}: the checkpoint {args.resume} has {saved.epoch} epochs "
                            "behind it; give at least as many")
    return options.resolve(args), saved


def begin(args: argparse.Namespace, saved: Checkpoint | None, split: TrainSplit, fingerprint: str,
          processes: Processes) -> Checkpoint:
    """Where a run stands: at its beginning, or where the checkpoint left it.

    Raises `UserError` unless that checkpoint can be gone on from with these images and processes.
    """
    fresh = Checkpoint(net={}, args=vars(args), num_classes=len(split.pids), name=run_name(args),
                       trial=args.trial, fingerprint=fingerprint, processes=processes.count,
                       versions=versions(), commit=git_commit())
    if saved is None:
        return fresh
    advice = "use the data of that run, or begin a new run with --init"
    if saved.optimiser is None:
        raise UserError(f"--resume {args.resume}: weights only found (a best file), a last or epoch_N file "
                        "expected; resume that, or begin a new run with --init")
    if saved.fingerprint != fresh.fingerprint:
        raise UserError(f"--resume {args.resume}: trained on data {saved.fingerprint[:12]}, but --data-path "
                        f"{args.data_path} is {fresh.fingerprint[:12]}; {advice}")
    if saved.processes != processes.count:  # what a step sees, and where it stands, depend on their number
        raise UserError(f"--resume {args.resume}: a run of {saved.processes} process(es) found, "
                        f"{processes.count} started; go on with torchrun --nproc-per-node {saved.processes}, "
                        "or begin a new run with --init")
    return replace(fresh, name=saved.name or run_name(args, old=True), epoch=saved.epoch, step=saved.step,
                   sums=saved.sums, seconds=saved.seconds, best=saved.best)


def run_name(args: argparse.Namespace, old: bool = False) -> str:
    """What tells a run from others; backbone, size, schedule, length, augmentations if not the default.

    old: as it was before names told these, in files that hold no name.
    """
    words = [args.dataset, args.method, f"p{args.num_pos}_n{args.batch_size}_lr_{args.lr}_seed_{args.seed}"]
    told = {("arch",): "{}", ("img_h", "img_w"): "{}x{}", ("schedule",): "{}", ("epochs",): "epochs_{}",
            ("augment",): "{}"}
    default = options.train_parser().get_default
    for names, form in told.items():
        values = [getattr(args, name) for name in names]
        if values != [default(name) for name in names] and not old:
            words.append(form.format(*values).replace(",", "-"))
    return "_".join(words + ([f"trial_{args.trial}"] if DATASETS[args.dataset].splits > 1 else []))


def run_files(name: str, args: argparse.Namespace, processes: Processes,
              saved: Checkpoint | None) -> RunFiles:
    """The run's files, which all begin with its name."""
    return RunFiles(name, args.model_path, Path(args.log_path) / f"{args.dataset}_log", args.vis_log_path,
                    processes.writes, resumed=saved is not None)


def moved(args: argparse.Namespace) -> bool:
    """Whether a run goes on in another folder than that of the checkpoint that it goes on from."""
    return args.resume is not None and Path(args.resume).resolve().parent != Path(args.model_path).resolve()


def take_best_along(args: argparse.Namespace, state: Checkpoint, files: RunFiles) -> None:
    """Have the best file of a run that goes on in its folder; where it is missing, count the best anew."""
    if state.best["epoch"] < 0:
        return
    target = files.path("best")
    source = Path(args.resume).with_name(target.name)
    if moved(args) and source.exists():
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
    elif not target.exists():
        warn(f"--resume {args.resume}: {source} is not there; "
             f"the best is counted anew from epoch {state.epoch}")
        state.best = Checkpoint({}, {}, 0).best


def set_up(args: argparse.Namespace, saved: Checkpoint | None, state: Checkpoint, files: RunFiles,
           sampler: IdentitySampler, device: torch.device) -> Training:
    """Network, losses and optimiser as a run begins with them, or as its checkpoint left them."""
    seed_everything(args.seed)
    net, state.first_weights = first_network(args, saved, state.num_classes, device)
    criterion = Criterion(net.method.losses, state.num_classes, net.dim).to(device)
    optimiser = build_optimiser(net, criterion, args.lr, args.pretrained != "none" or bool(args.init),
                                args.optim)
    if saved is not None:
        go_on_from(saved, args.resume, criterion, optimiser, sampler)
    bf16 = use_bf16(device, args.amp, args.arch, ImageSpec.from_arguments(vars(args)))
    return Training(args, state, files, device, bf16, net, criterion, optimiser)


def first_network(args: argparse.Namespace, saved: Checkpoint | None, classes: int,
                  device: torch.device) -> tuple[TwoStream, str]:
    """A new network with the arguments' first weights, or a checkpoint's; a line on those weights."""
    method = options.with_flags(METHODS[args.method], args)
    if saved is not None:
        net, line = saved.network(args.resume), saved.first_weights
        net.method = method
    elif args.init:
        net = build_network(method, args.arch, classes)
        line = f"--init {args.init}: {load_init(net, args.init, args.dataset, args.trial)}"
    else:
        weights, line = pretrained_weights(args.pretrained, args.arch)
        net, line = build_network(method, args.arch, classes, weights), f"--pretrained {line}"
    if args.sync_bn:
        if device.type != "cuda":
            raise UserError("--sync-bn: torch synchronises batch statistics on CUDA only, the run is on the "
                            "CPU; leave it out, or go on with such a run on CUDA")
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return net.to(device, memory_format=torch.channels_last), line


def go_on_from(saved: Checkpoint, path: str, criterion: Criterion, optimiser: torch.optim.Optimizer,
               sampler: IdentitySampler) -> None:
    """Put back what losses and optimiser had learnt; `UserError` if a checkpoint holds none that fit."""
    try:
        criterion.load_state_dict(saved.criterion)
        load_optimiser(optimiser, saved.optimiser)
        if not 0 <= saved.step <= sampler.steps or saved.epoch < 0:
            raise ValueError(f"epoch {saved.epoch}, step {saved.step} of {sampler.steps}")
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"--resume {path}: its optimiser or progress does not fit this run "
                        f"({type(error).__name__}: {one_line(error)[:160]}); use another file, or begin a "
                        "new run with --init") from None


def keep_on_device(args: argparse.Namespace, images: dict[str, TrainImages], device: torch.device) -> bool:
    """Whether the training pixels live on the device."""
    return args.data_device == "gpu" or (args.data_device == "auto" and fits_on_device(images, device))


def wrap(module: nn.Module, compiled: bool, device: torch.device) -> nn.Module:
    """A module as training calls it: compiled where asked, its gradients averaged over processes."""
    if compiled:
        module.compile()
    if not dist.is_initialized() or not any(p.requires_grad for p in module.parameters()):
        return module
    return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


# ------------------------------------------------------------------------------------------------- all trials
def train_every_trial(args: argparse.Namespace) -> None:
    """Train a model on each trial, one process after the other, then test all of them together.

    A trial whose training is complete is not trained again, and one that was stopped goes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"--trial {EVERY}: {os.environ['WORLD_SIZE']} processes started; "
                        "give torchrun one trial at a time")
    data, fixed = DATASETS[args.dataset], options.train_parser().fixed
    name = run_name(argparse.Namespace(**{**vars(args), "trial": "{}"}))
    pattern = str(Path(args.model_path) / f"{name}_last.t")
    epochs: dict[int, int | None] = {}
    for trial in data.trials(EVERY):  # a fault of any is said before the first is trained
        data.train_split(args.data_path, trial)
        data.searches(args.data_path, direction=args.direction, trials=[trial],
                      **data.keywords("searches", vars(args)))
        last = pattern.replace("{}", str(trial))
        saved = load_checkpoint(last) if Path(last).exists() else None
        if saved is not None:
            require_same_run(args, saved, fixed - {"trial"}, last)
        epochs[trial] = saved and saved.epoch
    for trial, epoch in epochs.items():
        last = pattern.replace("{}", str(trial))
        if epoch is None:
            run_script("train.py", *given_words({"trial"}), "--trial", str(trial))
        elif epoch < args.epochs:
            run_script("train.py", *given_words(fixed), "--resume", last)
        else:
            print(f"trial {trial}: {last} is complete", flush=True)
    run_script("test.py", "--resume", pattern, "--data-path", args.data_path, "--direction", args.direction,
               "--gpu", args.gpu, "--workers", str(args.workers), "--test-batch", str(args.test_batch))


def require_same_run(args: argparse.Namespace, saved: Checkpoint, names: set[str], path: str) -> None:
    """Raise `UserError` where a checkpoint of the run's name is one of other settings."""
    for name in sorted(names & saved.args.keys()):
        own, other = getattr(args, name), saved.args[name]
        if own != other:
            flag = options.train_parser().flag(name)
            raise UserError(f"--trial {EVERY}: {path} was trained with {flag} {other}, not {own}; "
                            "give the same flags, or another --model_path")


def given_words(leave_out: set[str]) -> list[str]:
    """The words of the command line, but for those of some arguments."""
    parser = options.train_parser()
    args, given = parse_given(parser)
    words: list[str] = []
    for name in sorted(given - leave_out):
        value = getattr(args, name)
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [parser.flag(name), *map(str, values)]
    return words


def run_script(*words: str) -> None:
    """Run one of the scripts and hand signals on to it; ends with its status where that is not 0."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    command = [sys.executable, str(Path(__file__).with_name(words[0])), *words[1:]]
    # in a session of its own, so that a terminal's signal comes once, from here
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait()
    except (Interrupted, KeyboardInterrupt) as error:
        signum = getattr(error, "signum", signal.SIGINT)
        process.send_signal(signum)
        process.wait()
        raise Interrupted(signum, "stopped; the same command goes on") from None
    if status:
        sys.exit(status if status > 0 else 128 - status)


# --------------------------------------------------------------------------------------------------- an epoch
def train_epoch(steps: Iterator[dict[str, torch.Tensor]], state: Checkpoint, batches: TrainBatches,
                stop: StopRequest, files: RunFiles, read_every: int) -> dict[str, float]:
    """Take an epoch's steps, or what is left of them, noting in `state` how far they came; their figures.

    Raises `UserError` that names the last good checkpoint if a loss is not finite.
    """
    begun, meters = time.perf_counter(), Meters(state.sums, state.step)
    try:
        done = train_one_epoch(steps, len(batches), meters, stop, files.log, state.epoch, read_every)
    except NotFinite as error:
        raise UserError(f"{error}; {last_good(files)}; lower --lr, or use --amp off") from None
    state.seconds += time.perf_counter() - begun
    images = done * batches.images_per_step * state.processes
    state.step, state.sums = done, meters.sums
    return {**meters.means(), "seconds": round(state.seconds, 3),
            "images_per_s": round(images / state.seconds, 1)}


def evaluate(training: Training, searches: list[Search], stop: StopRequest) -> dict[str, float]:
    """Figures of the first search, as test.py finds them; processes take the first's running statistics.

    There are none without a search. What fails is a warning, and there are no figures; of several processes,
    where all of them see it. Raises `Interrupted` if a signal comes.
    """
    if not searches:
        return {}
    if dist.is_initialized():
        for buffer in training.net.buffers():
            dist.broadcast(buffer, 0)
    settings = evaluation(training.args, training.files.log.silent)
    try:
        found = search_features(training.net, searches, settings)
        stop.raise_if_asked()
        return {f"{kind}/{name}": value for kind in FEATURES
                for name, value in score(found, searches[0], kind).headline().items()}
    except Exception as error:
        cause = explain(error)
        if cause is None or (dist.is_initialized() and not isinstance(error, NotFinite)):
            raise
        if not settings.silent:
            warn(f"epoch {training.state.epoch}: the evaluation failed, no figures of this epoch, the run "
                 f"goes on: {cause}")
        return {}


def finish_epoch(record: dict[str, float], training: Training) -> None:
    """Write logs, checkpoints, then what is looked at: what a kill in between loses is done again."""
    args, state, files = training.args, training.state, training.files
    files.log_epoch(record)
    state.epoch, state.step, state.sums, state.seconds = state.epoch + 1, 0, {}, 0.0
    if record.get("bnneck/rank-1", -1.0) > state.best["rank-1"]:
        state.best = {"rank-1": record["bnneck/rank-1"], "mAP": record["bnneck/mAP"],
                      "epoch": record["epoch"]}
        save("best", training)
    if state.epoch % args.save_epoch == 0:
        save(f"epoch_{state.epoch}", training)
        if args.keep and files.writes:
            remove_old_epochs(files.folder, files.name, args.keep, state.epoch)
    save("last", training)
    files.draw_epoch(record)


def save(kind: str, training: Training) -> None:
    """Write `last` or `epoch_N` with all that going on needs, or `best` with the weights.

    Raises `UserError` rather than write weights that are not finite, which no script would read again.
    """
    state, files = training.state, training.files
    if not files.writes:
        return
    weights = training.net.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"after epoch {state.epoch}: {name} is not finite; {last_good(files)}; lower "
                            "--lr, or use --amp off")
    save_checkpoint(files.path(kind), replace(
        state, net=weights, criterion=training.criterion.state_dict(),
        optimiser=None if kind == "best" else training.optimiser.state_dict()))
    files.saved = files.saved or kind == "last"


def last_good(files: RunFiles) -> str:
    """The checkpoint of this run to go back to, in words."""
    return (f"the last good checkpoint is {files.path('last')}" if files.saved
            else "no checkpoint was written yet")


def stopped(stop: StopRequest, state: Checkpoint, batches: TrainBatches, files: RunFiles) -> Interrupted:
    """The end of a run that was asked to stop, with the command that goes on in the same way."""
    program = ["python"] if state.processes == 1 else ["torchrun", "--nproc-per-node", str(state.processes)]
    words = ["--resume", str(files.path("last")), "--data-path", state.args["data_path"],
             "--gpu", state.args["gpu"]]
    return Interrupted(stop.signum, f"stopped in epoch {state.epoch} after step {state.step} of "
                                    f"{len(batches)}; go on with: "
                                    f"{shlex.join([*program, 'train.py', *words])}")


# ----------------------------------------------------------------------------------------- what is said of it
def describe_run(training: Training, split: TrainSplit, searches: list[Search],
                 sampler: IdentitySampler) -> None:
    """Log what is about to run on what."""
    state, net, log = training.state, training.net, training.files.log
    where = f"{training.device}, {'bf16' if training.bf16 else 'float32'}"
    log(f"run {state.name}, recipe {state.args['recipe']}, on {where}, {state.processes} process(es)")
    log(f"arguments {json.dumps(state.args)}")
    log(f"{json.dumps({'versions': state.versions, 'commit': state.commit})} data {state.fingerprint[:16]}")
    log(f"first weights: {state.first_weights}")
    log(f"{DATASETS[state.args['dataset']].title:<18} {'ids':>6} {'images':>8}")
    rows = [("train visible", split.visible), ("train infrared", split.infrared)]
    for search in searches[:1]:
        rows += [(f"query {search.query.modality}", search.query),
                 (f"gallery {search.gallery.modality}", search.gallery)]
    for name, images in rows:
        log(f"{name:<18} {len(set(images.pids.tolist())):>6} {len(images):>8}")
    for line in (line for search in searches[:1] for line in unmatched(search)):
        log(line)
    parameters = sum(p.numel() for p in net.parameters()) - net.classifier.weight.numel()
    losses = {name: {"weight": loss.weight, **loss.parameters} for name, loss in net.method.losses.items()}
    log(f"{state.args['method']}: {parameters / 1e6:.2f} M parameters without classifier; losses {losses}; "
        f"{state.num_classes} classes, {sampler.steps} steps an epoch")
    log("best is chosen on the test images that it is reported on, as is usual in this field; last is not"
        if searches else "no test images: nothing is evaluated, and no best chosen")


def unmatched(search: Search) -> list[str]:
    """A line on the queries of a search that see no match, if there are such."""
    return unmatched_line([(search.unmatched(), len(search.query))])


def warn_of_surprises(args: argparse.Namespace, files: RunFiles, split: TrainSplit, searches: list[Search],
                      saved: Checkpoint | None) -> None:
    """Warn of what is legal but surely unintended."""
    for line in DATASETS[args.dataset].surprises(args.data_path, split, *searches[:1]):
        warn(line)
    scratch = args.pretrained == "none" and not args.init and saved is None
    if scratch and args.lr >= 0.1 and args.optim == "sgd":
        warn(f"--pretrained none with --lr {args.lr}: a backbone from scratch learns at the full rate, ten "
             "times that of a pretrained one; if the loss does not fall, lower --lr")
    if args.schedule == "step" and args.epochs <= SHORT:
        warn(f"--epochs {args.epochs}: --schedule step first lowers the rate in epoch 20, after the end of "
             "this run; --schedule cosine fits any length")
    if saved is not None and args.schedule == "cosine" and args.epochs != saved.args["epochs"]:
        then, now = (learning_rate_factor(saved.epoch, epochs, "cosine") * args.lr
                     for epochs in (saved.args["epochs"], args.epochs))
        warn(f"--epochs {args.epochs}: the run began with --epochs {saved.args['epochs']}, and --schedule "
             f"cosine goes by its length: the rate of epoch {saved.epoch} is {now:.3g}, not {then:.3g}")
    if (earlier := files.earlier(last_only=saved is not None)) and (saved is None or moved(args)):
        warn(f"{', '.join(map(str, earlier))}: a run of this name is there and will be overwritten; --resume "
             "goes on with it, another --model_path and --log_path keep it")
    few = sum(int((np.bincount(split.labels(modality)) < args.num_pos).sum()) for modality in MODALITIES)
    if few:
        warn(f"{few} time(s) a person has fewer than --num_pos {args.num_pos} images of a modality: its "
             "images repeat in a batch")


def warn_of_stuck_triplet(record: dict[str, float], method: Method) -> None:
    """Warn if an epoch's triplet loss is its margin, or the weighted one ln 2: the network maps all images to
    one point. One that learns passes by ln 2 as well, so that only what is very near counts there.
    """
    margin = method.losses["triplet"].parameters["margin"] if "triplet" in method.losses else 0
    for name, value, near, what in (("triplet", margin, 0.005, "its margin"),
                                    ("weighted_triplet", math.log(2), 0.0005, "ln 2")):
        if value and abs(record.get(name, 0) - value) < near * value:
            warn(f"epoch {record['epoch']}: the {name.replace('_', ' ')} loss stayed at {what} "
                 f"({record[name]:.4f}): features do not differ; lower --lr or use pretrained weights")


def test_only(args: argparse.Namespace, saved: Checkpoint, searches: list[Search], device: torch.device,
              processes: Processes) -> None:
    """Evaluate a checkpoint on the search that training evaluates on."""
    if saved.optimiser is None:
        warn_of_best(args.resume)
    net = saved.network(args.resume).to(device, memory_format=torch.channels_last)
    found = search_features(net, searches, evaluation(args, silent=not processes.writes))
    if processes.writes:
        print("\n".join([searches[0].name, *unmatched(searches[0])]))
        for kind in FEATURES:
            print(f"{kind:<7} " + show_percent(score(found, searches[0], kind).headline()))
    stop_processes()


def evaluation(args: argparse.Namespace, silent: bool) -> Extraction:
    """How test images become features: in float32, so that the figures are those of test.py."""
    return Extraction(ImageSpec.from_arguments(vars(args)), args.test_batch, args.workers, silent=silent)


if __name__ == "__main__":
    run(main)
