"""End a run of train.py at an event of its own: a step, half-way through a write, around a rename."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
ENDED = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import command_line, ending, train
with ending.end_at(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
    sys.argv[:4] = ["train.py"]
    command_line.run(train.main)
"""


@contextlib.contextmanager
def short_resnet() -> Iterator[None]:
    """Give resnet18 one block a stage in this process: each kind of layer in half the time."""
    from torchvision.models.resnet import BasicBlock, ResNet
    with mock.patch("torchvision.models.resnet18", lambda weights=None: ResNet(BasicBlock, [1, 1, 1, 1])):
        yield


@contextlib.contextmanager
def end_at(kind: str, number: int, signum: int) -> Iterator[None]:
    """Send a signal to this process at the n-th event of a kind: step, evaluation, write, before, after."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import train
    seen = {"count": 0}

    def happens(what: str) -> None:
        seen["count"] += what == kind
        if what == kind and seen["count"] == number:
            os.kill(os.getpid(), signum)

    def save(content, path, original=torch.save):
        original(content, path)
        if kind == "write" and seen["count"] == number - 1:
            os.truncate(path, os.path.getsize(path) // 2)
        happens("write")

    def replace(source, target, original=os.replace):
        checkpoint = str(target).endswith(".t")
        if checkpoint:
            happens("before")
        original(source, target)
        if checkpoint:
            happens("after")

    def evaluate(*args, original=train.evaluate):
        happens("evaluation")
        return original(*args)

    hook = register_optimizer_step_post_hook(lambda *_: happens("step"))
    with mock.patch("torch.save", save), mock.patch("os.replace", replace), \
            mock.patch("train.evaluate", evaluate):
        try:
            yield
        finally:
            hook.remove()


def end_by(kind: str, number: int, signum: int, words: list[object]) -> list[object]:
    """The command line of a run of train.py, in a process of its own, that a signal ends at an event."""
    return ["-c", ENDED, kind, number, signum, *words]
