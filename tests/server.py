"""Scripts that start in a moment: a server that has torch and the like loaded forks a child for each.

The child is what `python script.py` is: it imports the project anew, and has its own folder, arguments,
environment, output, limits and process id, so that signals and exit statuses are real ones. What it shares
with the others is only what no script changes for the next: the libraries as they were imported, and the
seed of Python's hashes. Where the system is not Linux, each script starts in an interpreter of its own.
"""
from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
# What the scripts import, now or later: nothing of the project, and nothing that starts a thread.
LIBRARIES = (
    "torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "torch.utils.data", "torchvision",
    "torch.utils.tensorboard", "numpy", "scipy.io", "scipy.sparse", "matplotlib.figure", "matplotlib.patches",
    "matplotlib.backends.backend_agg", "PIL.Image", "PIL.ImageDraw", "PIL.ImageFilter", "PIL.ImageOps",
    "PIL.BmpImagePlugin", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "tqdm", "filelock",
    "concurrent.futures.process", "multiprocessing.connection")


class Script:
    """A script on its way, or at its end: the part of `subprocess.Popen` that tests use."""

    def __init__(self, words: Iterable[object], cwd: Path, env: dict[str, str],
                 file_size: int | None) -> None:
        """Start `python *words`. `file_size`: the largest file, in bytes, that the system lets it write."""
        self.args, self.returncode = [sys.executable, *map(str, words)], None
        self.output: tuple[IO[bytes], IO[bytes]] = (tempfile.TemporaryFile(), tempfile.TemporaryFile())
        self.channel, other = socket.socketpair()
        request = {"words": self.args[1:], "cwd": str(cwd), "env": env, "file_size": file_size}
        with other:
            descriptors = [*(file.fileno() for file in self.output), other.fileno()]
            socket.send_fds(running(), [json.dumps(request).encode()], descriptors)
        self.pid = self.hear()

    def hear(self, timeout: float | None = None) -> int:
        """The next number that the server says."""
        self.channel.settimeout(timeout)
        said = self.channel.recv(4)
        if not said:
            raise RuntimeError("the server that starts scripts has ended")
        return int.from_bytes(said, "little", signed=True)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; raises `TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            try:
                self.returncode = self.hear(timeout)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout) from None
        return self.returncode

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; all that it wrote to stdout and stderr."""
        self.wait(timeout)
        return tuple(os.pread(file.fileno(), 1 << 30, 0).decode() for file in self.output)


def start(words: Iterable[object], cwd: Path, env: dict[str, str] | None = None, file_size: int | None = None,
          fresh: bool = False) -> Script | subprocess.Popen:
    """Start `python *words` with additions to the environment; `fresh`: in an interpreter of its own."""
    whole = {**os.environ, **(env or {})}
    if sys.platform == "linux" and not fresh:
        return Script(words, cwd, whole, file_size)
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, env=whole, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=functools.partial(limit, file_size) if file_size else None)


def run(words: Iterable[object], cwd: Path, timeout: float = 300,
        **options: Any) -> subprocess.CompletedProcess:
    """Run `python *words` to its end, or kill it after `timeout` seconds."""
    script = start(words, cwd, **options)
    try:
        stdout, stderr = script.communicate(timeout)
    except BaseException:
        script.kill()
        script.wait()
        raise
    return subprocess.CompletedProcess(script.args, script.returncode, stdout, stderr)


def limit(file_size: int) -> None:
    """Let this process write no larger file."""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))


@functools.cache
def running() -> socket.socket:
    """The way to this process's server, which starts at the first call and ends with this process."""
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork keeps no threads
    with other:
        process = subprocess.Popen([sys.executable, __file__, str(other.fileno())], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, pass_fds=[other.fileno()], env=env)
    process.returncode = 0  # nobody waits for it
    return ours


# ------------------------------------------------------------------------------------------------- the server
def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a child for each request, say its pid and its end. Returns in the children, with their request."""
    begun: dict[int, tuple[int, socket.socket]] = {}  # pidfd: pid, the way to who asked
    while True:
        for ready in select.select([control, *begun], [], [])[0]:
            if ready is not control:
                pid, channel = begun.pop(ready)
                os.close(ready)
                say(channel, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                channel.close()
                continue
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 3)
            if not message:  # who asked has ended
                for pid, _ in begun.values():
                    os.kill(pid, signal.SIGKILL)
                sys.exit()
            pid, channel = os.fork(), socket.socket(fileno=descriptors.pop())
            if pid:
                begun[os.pidfd_open(pid)] = pid, channel
                say(channel, pid)
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            for descriptor in begun:
                os.close(descriptor)
            for way in (control, channel, *(way for _, way in begun.values())):
                way.close()
            for descriptor, target in zip(descriptors, (1, 2)):
                os.dup2(descriptor, target)
                os.close(descriptor)
            return json.loads(message)


def say(channel: socket.socket, number: int) -> None:
    """Send a number to who asked, if they still listen."""
    with contextlib.suppress(OSError):
        channel.send(number.to_bytes(4, "little", signed=True))


def become(words: list[str], cwd: str, env: dict[str, str],
           file_size: int | None) -> tuple[types.ModuleType, types.CodeType]:
    """Make this process what `python *words` is at its first line; returns the main module and its code."""
    import numpy as np
    import torch
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count())))  # it was 1 when torch was loaded
    np.random.seed()  # Python's own generator sees to itself
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if file_size:
        limit(file_size)
    main = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    if words[0] == "-c":
        source, name = words.pop(1), "<string>"
        sys.path[0] = ""
    else:
        source, name = Path(words[0]).read_bytes(), words[0]
        sys.path[0], main.__file__ = os.path.dirname(os.path.abspath(name)), name
    sys.argv[:], sys.modules["__main__"] = words, main
    return main, compile(source, name, "exec", dont_inherit=True)


def execute(main: types.ModuleType, code: types.CodeType) -> NoReturn:
    """Run a script and end as the interpreter does, but for taking all libraries apart, which takes long."""
    status = 0
    try:
        exec(code, main.__dict__)
    except SystemExit as error:
        status = error.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120
    os._exit(status & 0xFF)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the terminal's goes to all: end without a word
    for library in LIBRARIES:
        importlib.import_module(library)
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1, "a library started threads"
    gc.collect()
    gc.freeze()  # so that no child copies what it only looks through
    itself = sys.modules["__main__"]  # kept: the children put another in its place
    execute(*become(**serve(socket.socket(fileno=int(sys.argv[1])))))
