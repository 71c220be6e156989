"""End a run of train.py at an event; as a script, `ending.py KIND NUMBER SIGNAL FLAGS ...`."""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock


@contextlib.contextmanager
def short_resnet() -> Iterator[None]:
    """Give ResNets few blocks in this process: each kind of layer in half the time."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
    resnet18, resnet50 = (BasicBlock, [1, 1, 1, 1]), (Bottleneck, [1, 3, 4, 1])  # AGW is behind the last 2, 3
    with mock.patch("torchvision.models.resnet18", lambda weights=None: ResNet(*resnet18)), \
            mock.patch("torchvision.models.resnet50", lambda weights=None: ResNet(*resnet50)):
        yield


@contextlib.contextmanager
def end_at(kind: str, number: int, signum: int) -> Iterator[None]:
    """Send a signal to this process at the n-th event of a kind: step, evaluation, write, after a rename."""
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
        original(source, target)
        if str(target).endswith(".t"):
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
    return [__file__, kind, number, signum, *words]


def main() -> None:
    """Run train.py with the flags behind the first three arguments."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import command_line
    import train
    kind, number, signum = sys.argv[1], *map(int, sys.argv[2:4])
    sys.argv[:4] = ["train.py"]
    with short_resnet(), end_at(kind, number, signum):
        command_line.run(train.main)


if __name__ == "__main__":
    main()
