"""Run the scripts as a user does: `main` in this process, or an interpreter of its own where that matters."""
from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(words: Iterable[object], cwd: Path, env: Mapping[str, str] | None = None,
          file_size: int | None = None) -> subprocess.Popen:
    """Start `python *words` in a process of its own; file_size: the largest file, in bytes, it may write."""
    def prepare() -> None:
        hear_signals()
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    return subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, env={**os.environ, **(env or {})},
                            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, preexec_fn=prepare)


def hear_signals() -> None:
    """Take back that signals are ignored, as a shell has it for what runs in the background."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


def run(words: Iterable[object], cwd: Path, timeout: float = 300, env: Mapping[str, str] | None = None,
        file_size: int | None = None, fresh: bool = False) -> subprocess.CompletedProcess:
    """Run `python *words` to its end, in this process unless `fresh`, `file_size` or -c asks for one."""
    words = list(map(str, words))
    if not (fresh or file_size or words[0].startswith("-")):
        return run_here(words, cwd, env or {})
    script = start(words, cwd, env, file_size)
    try:
        stdout, stderr = script.communicate(timeout=timeout)
    finally:
        script.kill()
    return subprocess.CompletedProcess(script.args, script.returncode, stdout, stderr)


def run_here(words: list[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess:
    """Call a script's `main` through `command_line.run`, which turns errors into a line and a status."""
    import command_line
    main = importlib.import_module(Path(words[0]).stem).main
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with as_script(words, cwd, env), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            command_line.run(main)
        except SystemExit as error:
            status = error.code or 0
    for stream in (stdout, stderr):
        stream.flush()
    texts = [stream.buffer.getvalue().decode() for stream in (stdout, stderr)]
    return subprocess.CompletedProcess(words, status, *texts)


@contextlib.contextmanager
def as_script(words: list[str], cwd: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Give a script its command line, folder, environment and generators, and put back what was there."""
    kept = (sys.argv, os.getcwd(), dict(os.environ), warnings.showwarning, threading.excepthook)
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    drawn = random.getstate()
    hear_signals()
    sys.argv = words
    os.chdir(cwd)
    os.environ.update(env)
    try:
        yield
    finally:
        sys.argv, folder, environment, warnings.showwarning, threading.excepthook = kept
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        random.setstate(drawn)
