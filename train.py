"""Train a model, evaluating it as test.py does.

    python train.py --dataset sysu --gpu 0
    python train.py --resume save_model/..._last.t        goes on with a run
    torchrun --nproc-per-node 2 train.py ...              one process a GPU
"""
from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from checkpoint import (FORMAT, load_checkpoint, network_of, remove_old_epochs, rng_state, save_checkpoint,
                        set_rng_state, warn_of_best)
from data_loader import IdentitySampler, TrainBatches, fits_on_device, load_train_images
from data_manager import DATASETS, Protocol, TrainSplit, resolve_arguments, surprises
from devices import (Meters, Processes, choose_device, prepare, seed_everything, start_processes, stop_processes,
                     use_bf16)
from engine import NotFinite, StopRequest, build_network, build_optimiser, learning_rate_factor, train_one_epoch
from extraction import FEATURES, Extraction, headline, score, search_features, show_percent
from loss import LOSSES
from model import ARCHS, METHODS, MODALITIES
from run_files import Run
from utils import (Interrupted, Parser, UserError, add_shared_arguments, filled, git_commit, integer, not_negative, one_line,
                   parse_given, positive, run, versions, warn)

# Arguments that make a run what it is: a resumed run takes them from its checkpoint, and a flag cannot change them.
IDENTITY = ("dataset", "method", "arch", "trial", "img_w", "img_h", "lr", "optim", "schedule", "margin", "num_pos", "batch_size",
            "seed", "pretrained", "init", "sync_bn")
SHORT = 20  # epochs; a run of the step schedule that is no longer never lowers its rate
UNDERSCORED = ("img_", "num_", "save_", "model_", "log_", "vis_")  # flags that this field writes so
# Arguments that are of the machine that a run goes on on; all others come from the checkpoint, unless a flag says otherwise.
OF_THE_MACHINE = ("resume", "test_only", "gpu", "workers", "data_device", "compile", "test_batch")


def build_parser() -> Parser:
    """The arguments of training, on top of those shared with test.py."""
    parser = Parser(description="Train a model for visible-infrared person re-identification.")
    add_shared_arguments(parser, DATASETS, METHODS, ARCHS)
    parser.add_argument("--test-only", action="store_true", help="evaluate --resume and stop")
    parser.add_argument("--lr", type=positive, default=0.1, help="learning rate of new layers (pretrained: a tenth)")
    parser.add_argument("--optim", choices=("sgd", "adam"), default="sgd", help="optimiser")
    parser.add_argument("--epochs", type=integer(1), default=80, help="length")
    parser.add_argument("--schedule", choices=("step", "cosine"), default="step",
                        help="learning rate by epochs; step: the paper's, made for 80 epochs; cosine: for any number")
    parser.add_argument("--batch-size", type=integer(2), default=8, metavar="N", help="identities a batch and process")
    parser.add_argument("--num_pos", type=integer(1), default=4, metavar="P",
                        help="visible, and infrared, images of each identity in a batch")
    parser.add_argument("--margin", type=not_negative, default=0.3, help="margin of the triplet loss")
    parser.add_argument("--pretrained", type=filled, default="imagenet", metavar="imagenet|none|FILE",
                        help="first weights of the backbone; FILE: a torchvision state dict")
    parser.add_argument("--init", type=filled, metavar="FILE", help="take the weights of a checkpoint, and nothing else of it")
    parser.add_argument("--seed", type=integer(0, 2 ** 31 - 1), default=0, help="seed of everything that is drawn")
    parser.add_argument("--eval-every", type=integer(1), default=2, metavar="N", help="epochs between evaluations")
    parser.add_argument("--save_epoch", type=integer(1), default=20, metavar="N", help="epochs between epoch_N files")
    parser.add_argument("--keep", type=integer(1), metavar="N", help="keep only the newest N epoch_N files")
    parser.add_argument("--model_path", type=filled, default="save_model/", metavar="DIR", help="folder of checkpoints")
    parser.add_argument("--log_path", type=filled, default="log/", metavar="DIR", help="folder of text and JSON logs")
    parser.add_argument("--vis_log_path", type=filled, default="log/vis_log/", metavar="DIR",
                        help="folder of TensorBoard logs")
    parser.add_argument("--print-freq", type=integer(1), default=50, metavar="N", help="steps between lines of progress")
    parser.add_argument("--data-device", choices=("auto", "gpu", "cpu"), default="auto",
                        help="where training pixels live; auto: on the GPU if they take at most half of its free memory")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--sync-bn", action="store_true", help="several GPUs: batch statistics over all of them")
    return parser


def parse_arguments() -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The arguments, and the checkpoint to go on from: what `--resume` fixes and no flag says comes from the file.

    Raises `UserError` naming both where a flag contradicts the file.
    """
    parser = build_parser()
    args, given = parse_given(parser)
    saved = None
    if args.test_only and not args.resume:
        raise UserError("--test-only: no --resume given; name the checkpoint to test")
    if args.resume and args.init:
        raise UserError("--resume goes on with a run and --init begins a new one from its weights; give one of them")
    if args.init and "pretrained" in given and args.pretrained != "none":
        raise UserError(f"--pretrained {args.pretrained} and --init {args.init} both say which weights to begin with; give one")
    if args.resume:
        saved = load_checkpoint(args.resume)
        reconcile(args, given, saved, parser)
    return resolve_arguments(args), saved


def reconcile(args: argparse.Namespace, given: set[str], saved: dict[str, Any], parser: Parser) -> None:
    """Take from a checkpoint what no flag says; raises `UserError` where the two contradict, or for what no flag could say."""
    for name, own in vars(args).copy().items():
        if name in OF_THE_MACHINE:
            continue
        flag = "--" + (name if name.startswith(UNDERSCORED) else name.replace("_", "-"))
        value = saved["args"].get(name)
        if not parser.allows(name, value) and (value is not None or name in IDENTITY):
            raise UserError(f"--resume {args.resume}: {flag} {str(value)[:40]} found in it, a value of that flag expected; use a "
                            "file that train.py wrote")
        if name not in given:
            setattr(args, name, own if value is None else value)
        elif own != value and name in IDENTITY:
            raise UserError(f"{flag} {own}: the checkpoint {args.resume} was trained with {flag} {value}; leave the flag out, or "
                            "begin a new run with --init")
    if args.epochs < saved["epoch"]:
        raise UserError(f"--epochs {args.epochs}: the checkpoint {args.resume} has {saved['epoch']} epochs behind it; give at "
                        "least as many")


class Training:
    """A network in training: model, optimiser, batches, and the state that a checkpoint carries on."""

    def __init__(self, args: argparse.Namespace, saved: dict[str, Any] | None, files: Run, device: torch.device,
                 processes: Processes) -> None:
        self.args, self.files, self.device, self.processes = args, files, device, processes
        self.split = DATASETS[args.dataset].train_split(args.data_path, args.trial)
        self.fingerprint = self.split.fingerprint(args.data_path)
        if saved is not None:
            require_same_data(saved, self.split, self.fingerprint, args)
            require_same_processes(saved, processes, args)
        self.made_with = {"versions": versions(), "commit": git_commit()}
        seed_everything(args.seed)
        self.bf16 = use_bf16(device, args.amp, args.img_w)
        self.saved_last = saved is not None
        self.net = build_network(args, saved, len(self.split.pids), files.log, device)
        self.optimiser = build_optimiser(self.net, args)
        self.state = {"epoch": 0, "step": 0, "sums": {}, "best": {"rank-1": -1.0, "mAP": 0.0, "epoch": -1}}
        labels = {modality: self.split.labels(modality) for modality in MODALITIES}
        self.sampler = IdentitySampler(labels, args.batch_size, args.num_pos, args.seed, processes.count)
        if saved is not None:
            self.go_on_from(saved)

    def go_on_from(self, saved: dict[str, Any]) -> None:
        """Put optimiser, progress and generators back; raises `UserError` if a checkpoint holds none that fit."""
        try:
            self.optimiser.load_state_dict(saved["optimiser"])
            best = {name: saved["best"][name] + 0 for name in self.state["best"]}
            self.state = {**{name: saved[name] for name in self.state}, "best": best}
            numbers = (*best.values(), *saved["sums"].values())
            if not (0 <= self.state["step"] <= self.sampler.steps and math.isfinite(sum(numbers))):
                raise ValueError(f"step {self.state['step']} of {self.sampler.steps}, best {best}")
            set_rng_state(saved["rng"])
        except Exception as error:  # of whatever a file holds in their place
            raise UserError(f"--resume {self.args.resume}: its optimiser, progress or generators do not fit this run "
                            f"({type(error).__name__}: {one_line(error)[:160]}); use another file, or begin a new run with "
                            "--init") from None

    def load_batches(self) -> None:
        """Read the training images."""
        args = self.args
        if args.data_device == "gpu" and self.device.type == "cpu":
            raise UserError("--data-device gpu: the run is on the CPU; leave it out")
        images = load_train_images(self.split, args.data_path, args.img_h, args.img_w, args.workers, silent=self.files.log.silent)
        on_device = args.data_device == "gpu" or (args.data_device == "auto" and fits_on_device(images, self.device))
        self.batches = TrainBatches(images, self.sampler, self.device, on_device, args.seed, self.processes.rank)

    def wrap(self) -> nn.Module:
        """The network as training calls it: compiled, and averaged over processes, where asked."""
        if self.args.compile:
            self.net.compile()
        if self.processes.count == 1:
            return self.net
        return DistributedDataParallel(self.net, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def weights(self) -> dict[str, Any]:
        """What testing needs of a checkpoint."""
        return {"format": FORMAT, "net": self.net.state_dict(), "args": vars(self.args), "trial": self.args.trial,
                "num_classes": len(self.split.pids), "fingerprint": self.fingerprint, "processes": self.processes.count,
                **self.made_with, **self.state}

    def save(self, kind: str, whole: bool = True) -> None:
        """Write `last` or `epoch_N` with all that going on needs, or `best` with the weights."""
        if self.files.writes:
            self.require_finite_weights()
            extra = {"optimiser": self.optimiser.state_dict(), "rng": rng_state()} if whole else {}
            save_checkpoint(self.files.path(kind), {**self.weights(), **extra})
            self.saved_last |= kind == "last"

    def require_finite_weights(self) -> None:
        """Raise `UserError` rather than write what no script would read again."""
        for name, value in self.net.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                epoch = self.state["epoch"] - 1
                raise UserError(f"after epoch {epoch}: {name} is not finite; {self.last_good()}; lower --lr, or use --amp off")

    def last_good(self) -> str:
        """The checkpoint of this run to go back to, in words."""
        return f"the last good checkpoint is {self.files.path('last')}" if self.saved_last else "no checkpoint was written yet"

    def save_within(self, step: int, sums: dict[str, float]) -> None:
        """Save the middle of an epoch, or its end before its figures are known."""
        self.state.update(step=step, sums=sums)
        self.save("last")

    def stop(self, stop: StopRequest, step: int) -> None:
        """Raise `Interrupted` with the command that goes on."""
        raise Interrupted(stop.signum, f"stopped in epoch {self.state['epoch']} after step {step} of {len(self.batches)}; go on "
                                       f"with: {self.files.how_to_go_on()}")

    def run(self, protocols: list[Protocol], stop: StopRequest) -> None:
        """All epochs that are left."""
        net = self.wrap()
        for epoch in range(self.state["epoch"], self.args.epochs):
            factor = learning_rate_factor(epoch, self.args.epochs, self.args.schedule)
            for group in self.optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor
            meters = Meters(self.state["sums"], self.state["step"])
            begun, first = time.perf_counter(), self.state["step"]
            step = self.train_epoch(net, meters, stop)
            if stop.signum is not None:
                self.save_within(step, meters.sums)
                self.stop(stop, step)
            seconds = time.perf_counter() - begun
            images = (step - first) * 2 * self.args.batch_size * self.args.num_pos * self.processes.count
            record = {"epoch": epoch, "lr": self.args.lr * factor, **meters.means(), "seconds": round(seconds, 3),
                      "images_per_s": round(images / seconds, 1)}
            if self.files.writes:
                warn_of_stuck_triplet(record, self.args.margin)
            if (epoch + 1) % self.args.eval_every == 0 or epoch + 1 == self.args.epochs:
                self.save_within(step, meters.sums)  # whatever happens to the evaluation, the epoch is not lost
                try:
                    record.update(self.evaluate(protocols, stop))
                except Interrupted:
                    self.stop(stop, step)
            self.finish_epoch(record)

    def train_epoch(self, net: nn.Module, meters: Meters, stop: StopRequest) -> int:
        """One epoch, with the last good checkpoint named where a loss is not finite."""
        try:
            return train_one_epoch(net, self.batches, self.optimiser, self.state["epoch"], self.state["step"], meters, self.args,
                                   self.device, self.bf16, stop, self.files.log)
        except NotFinite as error:
            raise UserError(f"{error}; {self.last_good()}; lower --lr, or use --amp off") from None

    def evaluate(self, protocols: list[Protocol], stop: StopRequest) -> dict[str, float]:
        """Figures of the first search, as test.py finds them.

        Several processes take the running statistics of the one that writes, and stop together or not at all.
        """
        how = extraction(self.args, self.device, self.files.log.silent)
        if self.processes.count > 1:
            for buffer in self.net.buffers():
                dist.broadcast(buffer, 0)
            taken = search_features(self.net, protocols, how)
            stop.agree(self.device)
            stop.raise_if_asked()
        else:
            taken = search_features(self.net, protocols, how, check=stop.raise_if_asked)
        scores = {feature: score(taken, protocols[0], feature) for feature in FEATURES}
        return {f"{feature}/{name}": value for feature in FEATURES for name, value in headline(scores[feature]).items()}

    def finish_epoch(self, record: dict[str, float]) -> None:
        """Write logs, then checkpoints: what a kill in between loses is done again in the same way."""
        epoch, best = self.state["epoch"], self.state["best"]
        self.files.write_epoch(record)
        self.state.update(epoch=epoch + 1, step=0, sums={})
        if record.get("bnneck/rank-1", -1.0) > best["rank-1"]:
            self.state["best"] = {"rank-1": record["bnneck/rank-1"], "mAP": record["bnneck/mAP"], "epoch": epoch}
            self.save("best", whole=False)
        if (epoch + 1) % self.args.save_epoch == 0:
            self.save(f"epoch_{epoch + 1}")
            if self.args.keep and self.files.writes:
                remove_old_epochs(self.files.folder, self.files.name, self.args.keep, epoch + 1)
        self.save("last")


def warn_of_stuck_triplet(record: dict[str, float], margin: float) -> None:
    """Warn if an epoch's triplet loss is its margin: the network maps all images to one point."""
    if margin and abs(record.get("triplet", 0.0) - margin) < 0.005 * margin:
        warn(f"epoch {record['epoch']}: the triplet loss stayed at its margin ({record['triplet']:.4f}): features do not differ; "
             "lower --lr or use pretrained weights")


def require_same_data(saved: dict[str, Any], split: TrainSplit, fingerprint: str, args: argparse.Namespace) -> None:
    """Raise `UserError` unless a checkpoint holds what going on needs and was made with the same data."""
    if "optimiser" not in saved:
        raise UserError(f"--resume {args.resume}: weights only found (a best file), a last or epoch_N file expected; resume that, "
                        "or begin a new run with --init")
    if saved["num_classes"] != len(split.pids):
        raise UserError(f"--resume {args.resume}: a classifier of {saved['num_classes']} persons found, {len(split.pids)} are in "
                        f"--data-path {args.data_path}; use the data of that run, or begin a new run with --init")
    found = str(saved.get("fingerprint"))
    if found != fingerprint:
        raise UserError(f"--resume {args.resume}: trained on data {found[:12]}, but --data-path {args.data_path} is "
                        f"{fingerprint[:12]}; use the data of that run, or begin a new run with --init")


def require_same_processes(saved: dict[str, Any], processes: Processes, args: argparse.Namespace) -> None:
    """Raise `UserError` unless as many processes go on as began: what a step sees, and where it stands, depend on it."""
    began = saved.get("processes", 1)
    if began != processes.count:
        raise UserError(f"--resume {args.resume}: a run of {began} process(es) found, {processes.count} started; go on with "
                        f"torchrun --nproc-per-node {began}, or begin a new run with --init")


def describe_run(training: Training, protocols: list[Protocol]) -> None:
    """Log what is about to run on what."""
    args, split, log = training.args, training.split, training.files.log
    log(f"run {training.files.name} on {training.device}, {'bf16' if training.bf16 else 'float32'}, "
        f"{training.processes.count} process(es)")
    log(f"arguments {json.dumps(vars(args))}")
    log(f"{json.dumps(training.made_with)} data {training.fingerprint[:16]}")
    rows = [("train visible", split.visible), ("train infrared", split.infrared),
            (f"query {protocols[0].query.modality}", protocols[0].query),
            (f"gallery {protocols[0].gallery.modality}", protocols[0].gallery)]
    log(f"{DATASETS[args.dataset].title:<18} {'ids':>6} {'images':>8}")
    for name, images in rows:
        log(f"{name:<18} {len(set(images.pids.tolist())):>6} {len(images):>8}")
    parameters = sum(p.numel() for p in training.net.parameters()) - training.net.classifier.weight.numel()
    log(f"{args.method}: {parameters / 1e6:.2f} M parameters without classifier; losses {LOSSES[args.method]}; "
        f"{len(split.pids)} classes, {training.sampler.steps} steps an epoch")
    log("best is chosen on the test images that it is reported on, as is usual in this field; last is not")


def warn_of_surprises(training: Training, protocols: list[Protocol], resumed: bool) -> None:
    """Warn of what is legal but surely unintended."""
    args, split = training.args, training.split
    for line in surprises(args.dataset, args.data_path, split, protocols[0]):
        warn(line)
    if args.pretrained == "none" and not args.init and args.lr >= 0.1 and args.optim == "sgd" and not resumed:
        warn(f"--pretrained none with --lr {args.lr}: a backbone from scratch learns at the full rate, ten times that of a "
             "pretrained one; if the loss does not fall, lower --lr")
    if args.schedule == "step" and args.epochs <= SHORT:
        warn(f"--epochs {args.epochs}: --schedule step first lowers the rate in epoch 20, after the end of this run; --schedule "
             "cosine fits any length")
    if not resumed and (earlier := training.files.earlier()):
        warn(f"{', '.join(map(str, earlier))}: a run of this name is there and will be overwritten; --resume goes on with it, "
             "another --model_path and --log_path keep it")
    short = sum(int((split.labels(m) == label).sum() < args.num_pos) for m in MODALITIES for label in range(len(split.pids)))
    if short:
        warn(f"{short} time(s) a person has fewer than --num_pos {args.num_pos} images of a modality: its images repeat in a batch")


def main() -> None:
    """Train from the arguments of the command line."""
    args, saved = parse_arguments()
    device = choose_device(args.gpu)
    processes = start_processes(device)
    prepare(device)
    data = DATASETS[args.dataset]
    protocols = data.protocols(args.data_path, direction=args.direction, mode=args.mode, shot=args.shot, gallery=args.gallery,
                               trials=[args.trial if data.splits > 1 else 0])
    if args.test_only:
        test_only(args, saved, device, protocols, processes)
        return
    files = Run(args, processes)
    try:
        training = Training(args, saved, files, device, processes)
        describe_run(training, protocols)
        if files.writes:
            warn_of_surprises(training, protocols, saved is not None)
        training.load_batches()
        training.run(protocols, StopRequest())
        best = training.state["best"]
        files.log(f"done: best Rank-1 {best['rank-1']:.2%} mAP {best['mAP']:.2%} in epoch {best['epoch']}: {files.path('best')}")
    finally:
        files.release()
        stop_processes()


def test_only(args: argparse.Namespace, saved: dict[str, Any], device: torch.device, protocols: list[Protocol],
              processes: Processes) -> None:
    """Evaluate a checkpoint on the search that training evaluates on."""
    if "optimiser" not in saved:
        warn_of_best(args.resume)
    net = network_of(saved, args.resume).to(device, memory_format=torch.channels_last)
    taken = search_features(net, protocols, extraction(args, device, silent=not processes.writes))
    if processes.writes:
        print(protocols[0].name)
        for feature in FEATURES:
            print(f"{feature:<7} " + show_percent(headline(score(taken, protocols[0], feature))))
    stop_processes()


def extraction(args: argparse.Namespace, device: torch.device, silent: bool) -> Extraction:
    """How test images become features: in float32, so that the figures are those of test.py."""
    return Extraction(args.img_h, args.img_w, args.test_batch, args.workers, device, silent=silent)


if __name__ == "__main__":
    run(main)
