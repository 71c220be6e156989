"""The files of a training run: their names, their lock, checkpoints' places, logs and TensorBoard."""
from __future__ import annotations

import argparse
import contextlib
import shlex
from pathlib import Path
from typing import Any

import filelock

from data_manager import DATASETS
from devices import Processes
from engine import show
from utils import Log, UserError, make_folder, one_line


class Run:
    """The files of one training run, which one process at a time may write."""

    def __init__(self, args: argparse.Namespace, processes: Processes) -> None:
        self.args, self.processes, self.writes = args, processes, processes.writes
        trial = f"_trial_{args.trial}" if DATASETS[args.dataset].splits > 1 else ""
        self.name = f"{args.dataset}_{args.method}_p{args.num_pos}_n{args.batch_size}_lr_{args.lr}_seed_{args.seed}{trial}"
        self.folder = Path(args.model_path)
        self.log = Log(None)
        self.board = None
        self.locks: list[filelock.FileLock] = []
        if self.writes:
            make_folder(args.model_path, "--model_path")
            logs = make_folder(Path(args.log_path) / f"{args.dataset}_log", "--log_path")
            self.vis_folder = make_folder(Path(args.vis_log_path) / self.name, "--vis_log_path")
            try:
                self.take_lock(self.folder, "--model_path")
                self.take_lock(logs, "--log_path")
                self.log = Log(logs, self.name)
            except UserError:
                self.release()
                raise
            self.clear()

    def take_lock(self, folder: Path, flag: str) -> None:
        """Keep other processes off this run's files in a folder; raises `UserError` if one is at work on them."""
        lock = filelock.FileLock(folder / f".{self.name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{flag} {folder}: a living process is training {self.name} there; wait for it, or choose another "
                            f"{flag} or --seed") from None
        self.locks.append(lock)

    def clear(self) -> None:
        """Remove the checkpoints that a killed process left half-written."""
        for stray in self.folder.iterdir():
            if stray.name.startswith(f".{self.name}_") and stray.name.endswith(".tmp"):
                stray.unlink()

    def earlier(self) -> list[Path]:
        """What a run of this name has left here, and a new one overwrites."""
        return [path for path in (self.path("last"), self.log.epochs) if path is not None and path.exists()]

    def release(self) -> None:
        """Let go of the run's files."""
        if self.board is not None:
            with contextlib.suppress(OSError):  # said before
                self.board.close()
        for lock in self.locks:
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()

    def path(self, kind: str) -> Path:
        """The file of `last`, `best` or `epoch_N`."""
        return self.folder / f"{self.name}_{kind}.t"

    def how_to_go_on(self) -> str:
        """The command that resumes this run in the same way."""
        count = self.processes.count
        program = ["python"] if count == 1 else ["torchrun", "--nproc-per-node", str(count)]
        words = ["--resume", str(self.path("last")), "--data-path", self.args.data_path, "--gpu", self.args.gpu]
        return shlex.join([*program, "train.py", *words])

    def write_epoch(self, record: dict[str, Any]) -> None:
        """Write an epoch's figures to the text log, the JSON lines and TensorBoard."""
        if not self.writes:
            return
        self.log(show(record))
        self.log.epoch(record)
        try:
            if self.board is None:
                from torch.utils.tensorboard import SummaryWriter
                self.board = SummaryWriter(str(self.vis_folder), purge_step=record["epoch"])
            for name, value in record.items():
                self.board.add_scalar(name, value, record["epoch"])
            self.board.flush()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise UserError(f"--vis_log_path {self.vis_folder}: cannot be written ({reason}); make room, or choose a folder "
                            "that can") from None
