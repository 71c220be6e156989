"""What every script shares and none should repeat: errors, arguments, atomic files, logs. Imports no torch,
so that pre-processing stays small.
"""
from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

import filelock
from tqdm import tqdm


# What torch and its libraries, on a GPU or on the CPU, say in a RuntimeError where memory or threads run out.
NO_MEMORY = ("(?i)out of memory|can't allocate memory|not enough memory|alloc_failed|bad_alloc|"
             "could not create a (primitive|memory)|can't start new thread")
# What a file system without locks answers, as those of clusters may be.
NO_LOCKS = {getattr(errno, name, None) for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP")}
# How --gpu is declared.
GPU = {"default": "0", "metavar": "N|cuda:N|mps|cpu", "help": "number of a CUDA device, mps, or cpu"}


class UserError(Exception):
    """Something that the user can mend, in one line: file or flag, what was found, what was expected."""


class Interrupted(BaseException):
    """A signal, `signum`, asked the program to stop. No `except Exception` takes it for a fault."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds its default to the help of each argument whose help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or "(default: " in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit status 2, and which takes no abbreviated flags.

    `fixed` and `machine` name the arguments that a checkpoint fixes, and those that it does not say (see
    options.py).
    """

    def __init__(self, **kwargs: Any) -> None:
        self.declared: dict[str, argparse.Action] = {}
        self.fixed: set[str] = set()
        self.machine: set[str] = set()
        super().__init__(allow_abbrev=False, conflict_handler="resolve", formatter_class=HelpFormatter,
                         **kwargs)

    def add_argument(self, *names: Any, fixed: bool = False, machine: bool = False,
                     **kwargs: Any) -> argparse.Action:
        """Declare an argument, and remember how it was declared."""
        action = super().add_argument(*names, **kwargs)
        self.declared[action.dest] = action
        for chosen, among in ((fixed, self.fixed), (machine, self.machine)):
            if chosen:
                among.add(action.dest)
        return action

    def flag(self, name: str) -> str:
        """An argument as the command line spells it."""
        return self.declared[name].option_strings[0]

    def allows(self, name: str, value: Any) -> bool:
        """Whether the command line could have given an argument this value."""
        action = self.declared[name]
        if value is None or isinstance(action.const, bool):
            return type(value) is type(action.default)
        if isinstance(action.nargs, int):
            return (isinstance(value, list) and len(value) == action.nargs
                    and all(self.is_a(action, one) for one in value))
        return self.is_a(action, value)

    @staticmethod
    def is_a(action: argparse.Action, value: Any) -> bool:
        """Whether a word of the command line could have given this value."""
        try:
            return (action.type or str)(str(value)) == value and value in (action.choices or [value])
        except (argparse.ArgumentTypeError, ValueError):
            return False

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(text: object) -> str:
    """The text on one line, whatever it held; what a terminal would obey rather than show is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(text).split()))


def warn(message: str) -> None:
    """Print one warning line to stderr."""
    tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)


def one_line_warnings() -> None:
    """Show the warnings of libraries, and errors in their threads, as our own: one line each."""
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    threading.excepthook = lambda error: warn(f"{error.thread and error.thread.name}: {error.exc_value}")


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`; turn what a user can cause into one line on stderr and an exit status.

    Status 2 for a `UserError` or an error of the file system, 130 / 143 (128 + signal) for an interruption.
    """
    program = Path(sys.argv[0]).name
    status, line = 0, ""

    def terminate(signum: int, frame: object) -> NoReturn:
        raise Interrupted(signum, "terminated")

    try:
        signal.signal(signal.SIGTERM, terminate)
        # a file name may hold what the terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
        one_line_warnings()
        main()
    except Interrupted as error:
        status, line = 128 + error.signum, one_line(error) if os.environ.get("RANK", "0") == "0" else ""
    except KeyboardInterrupt:
        status, line = 128 + signal.SIGINT, "interrupted"
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # the reader of our output has gone: nothing to tell it
        status = 1
    except Exception as error:
        if (cause := explain(error)) is None:
            raise
        status, line = 2, f"error: {cause}"
    if line:
        print(f"{program}: {line}", file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the end of a short block that must not be left half-way.

    Processes that start in it have both blocked from their first instruction on: their parent alone answers
    to them.
    """
    held: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    # other threads hear of none
    heard = signals if threading.current_thread() is threading.main_thread() else ()
    before = {signum: signal.signal(signum, lambda signum, frame: held.append(signum)) for signum in heard}
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals) if masks else None
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if held:
        signal.raise_signal(held[0])


def in_processes(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], workers: int, ended: str,
                 start: Callable[[], None] | None = None) -> Iterator[Any]:
    """Results of `function(*call)` in a pool of processes, in the order in which they come; to be closed.

    Each process begins with `start()`, if given. Raises `UserError(ended)` if the system ends one, as where
    memory runs out.
    """
    try:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin, (start,))
    except OSError as error:  # of its semaphores
        raise UserError(f"--workers {workers}: no shared memory for processes ({error.strerror}); make room "
                        "in /dev/shm, or use --workers 0") from None
    with pool:
        try:
            with signals_held():  # a pool that is left while it starts a process cannot be shut down
                jobs = [pool.submit(function, *call) for call in calls]
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool:
            time.sleep(0.2)  # a signal that was sent to all processes may not have come to this one yet
            raise UserError(ended) from None
        finally:
            pool.shutdown(cancel_futures=True)


def begin(start: Callable[[], None] | None) -> None:
    """Begin a pool's process, which leaves SIGINT to its parent; by SIGTERM, a broken pool ends others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if start:
        start()


def explain(error: Exception) -> str | None:
    """One line for an error that a user can mend; None for any other, which is ours."""
    if isinstance(error, UserError):
        return one_line(error)
    if isinstance(error, OSError):
        return explain_os_error(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError)
                                          and re.search(NO_MEMORY, str(error))):
        return (f"out of memory ({one_line(error)[:160] or type(error).__name__}); free some, or use a "
                "smaller --batch-size or --test-batch, fewer --workers, or --data-device cpu")
    return None


def explain_os_error(error: Exception) -> str:
    """One line for an error of the operating system, with the file where it is known."""
    if not isinstance(error, OSError) or error.strerror is None:
        return one_line(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; free space, or mend the path or its permissions"


def require_matplotlib(flag: str, otherwise: str = "") -> None:
    """Load what draws figures, which takes a second, before the work that they show.

    Raises `UserError` naming the flag that asks for them where it cannot be had.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except Exception as error:  # of whatever Matplotlib and NumPy do to each other
        what = f"{type(error).__name__}: {one_line(error)[:120]}"
        raise UserError(f"{flag}: Matplotlib, which draws the figures, does not load ({what}); run: pip "
                        f"install --upgrade matplotlib{otherwise}") from None


# -------------------------------------------------------------------------------------------------- arguments
def integer(minimum: int, maximum: int = 10 ** 6) -> Callable[[str], int]:
    """An argparse type: a whole number within [minimum, maximum]."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{text!r} found, "
                                             f"a whole number from {minimum} to {maximum} expected")
        return value

    return parse


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    return _real(text, lambda value: value > 0, "a finite number above 0")


def not_negative(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    return _real(text, lambda value: value >= 0, "a finite number of at least 0")


def _real(text: str, accept: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and accept(value)):
        raise argparse.ArgumentTypeError(f"{text!r} found, {expected} expected")
    return value


def filled(text: str) -> str:
    """An argparse type: a name that is not empty, as the unset variable of a shell script is."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name found; name one, or leave the flag out")
    return text


def choices(known: Iterable[str]) -> Callable[[str], str]:
    """An argparse type: one or more of some names, separated by commas."""

    def parse(text: str) -> str:
        odd = [name for name in text.split(",") if name not in known]
        if odd:
            raise argparse.ArgumentTypeError(f"{odd[0]!r} found, names of {', '.join(known)} expected, "
                                             "with commas between")
        return text

    return parse


def add_data_arguments(parser: Parser) -> None:
    """Declare the image size and the readers, which every script that reads images takes."""
    parser.add_argument("--img_w", type=integer(16, 4096), default=144, metavar="PIXELS", fixed=True,
                        help="image width")
    parser.add_argument("--img_h", type=integer(16, 4096), default=288, metavar="PIXELS", fixed=True,
                        help="image height")
    parser.add_argument("--workers", type=integer(0, 256), default=4, metavar="N", machine=True,
                        help="parallel readers of images (0: none but the program itself)")


def parse_given(parser: Parser, words: Sequence[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
    """Parse the command line; also the names of the arguments that it gives, apart from defaults."""
    defaults = vars(parser.parse_args([]))
    missing = object()
    parsed = vars(parser.parse_args(words, namespace=argparse.Namespace(**dict.fromkeys(defaults, missing))))
    given = {name for name, value in parsed.items() if value is not missing}
    values = {name: parsed[name] if name in given else defaults[name] for name in defaults}
    return argparse.Namespace(**values), given


# ------------------------------------------------------------------------------------------------------ files
@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well, and otherwise vanishes.

    An error of the file system names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.strerror is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def make_folder(path: str | Path, flag: str) -> Path:
    """Create a folder for output and make sure that it can be written; else, `UserError` names the flag."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written ({error.strerror}); choose a folder that "
                        "can") from None
    return folder


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file, which stays (removal races); raises `UserError(message)` if another process does.

    Where the file system has no locks, one warning, and on without.
    """
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(message) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn(f"{path.parent}: its file system has no locks ({error.strerror}), going on without; let no "
             "second process write there")
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def git_commit() -> str:
    """The commit of the code that runs, with `+` if files were changed; `unknown` outside a checkout."""
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    from importlib.metadata import version
    return {"python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}}


class Log:
    """Lines to terminal and text file, a JSON line an epoch to a file beside it; silent without a folder."""

    def __init__(self, folder: Path | None, name: str = "") -> None:
        self.silent = folder is None
        self.text = folder and folder / f"{name}.txt"
        self.epochs = folder and folder / f"{name}.jsonl"
        self.earlier(0)

    def __call__(self, line: str = "") -> None:
        if self.text is None:
            return
        tqdm.write(line)
        try:
            with open(self.text, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.text)) from None

    def epoch(self, record: dict[str, Any]) -> None:
        """Write the record of one epoch; records of the same or of later epochs, left by a lost run, go."""
        if self.epochs is not None:
            lines = [*self.earlier(record["epoch"]), json.dumps(record)]
            with atomic_path(self.epochs) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def earlier(self, epoch: int) -> list[str]:
        """The lines of the epochs before this one; `UserError` if a line is none."""
        if self.epochs is None or not self.epochs.exists():
            return []
        try:
            return [line for line in self.epochs.read_text(encoding="utf-8").splitlines()
                    if json.loads(line)["epoch"] < epoch]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.epochs}: a line that is no record of an epoch found; remove the file, or "
                            "choose another --log_path") from None


class RunFiles:
    """The files of a training run, which one process at a time may write; in joint training, the first.

    Enter it as a context. resumed: whether it goes on from a checkpoint of its own. Raises `UserError`
    naming the flag where a folder cannot be written or another process is at work on the run's files.
    """

    def __init__(self, name: str, model_path: str, log_path: str | Path, vis_log_path: str,
                 writes: bool = True, resumed: bool = False) -> None:
        self.name, self.writes, self.folder = name, writes, Path(model_path)
        self.log, self.board = Log(None), None
        self.saved = resumed  # whether a checkpoint of this run is there to go back to
        self.held: contextlib.ExitStack = contextlib.ExitStack()
        self.flags = {"--model_path": model_path, "--log_path": log_path,
                      "--vis_log_path": Path(vis_log_path) / name}

    def __enter__(self) -> RunFiles:
        if not self.writes:
            return self
        folders = {flag: make_folder(path, flag) for flag, path in self.flags.items()}
        with contextlib.ExitStack() as held:
            for flag in ("--model_path", "--log_path"):
                held.enter_context(locked(folders[flag] / f".{self.name}.lock", (
                    f"{flag} {folders[flag]}: a living process is training {self.name} there; wait for it, "
                    f"or choose another {flag} or --seed")))
            self.log = Log(folders["--log_path"], self.name)
            self.clear()
            self.held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()

    def open_board(self, epoch: int) -> None:
        """Begin TensorBoard's file at an epoch; `UserError` says what to install where it cannot be had."""
        if not self.writes:
            return
        folder = self.flags["--vis_log_path"]
        try:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(folder), purge_step=epoch)
        except OSError as error:
            raise UserError(f"--vis_log_path {folder}: cannot be written "
                            f"({error.strerror or one_line(error)}); make room, or choose a folder that "
                            "can") from None
        except Exception as error:  # of whatever TensorBoard and protobuf do to each other
            raise UserError(f"TensorBoard does not start ({type(error).__name__}: {one_line(error)[:120]}); "
                            "run: pip install --upgrade tensorboard protobuf") from None
        self.held.callback(self.close_board)

    def close_board(self) -> None:
        """Close TensorBoard's file; that it cannot be written was said before."""
        with contextlib.suppress(OSError):
            if self.board is not None:
                self.board.close()

    def clear(self) -> None:
        """Remove the checkpoints that a killed process left half-written."""
        for stray in self.folder.iterdir():
            if stray.name.startswith(f".{self.name}_") and stray.name.endswith(".tmp"):
                stray.unlink()

    def earlier(self, last_only: bool = False) -> list[Path]:
        """What a run of this name has left here, and a new one overwrites."""
        paths = [self.path("last"), *([] if last_only else [self.path("best"), self.log.epochs])]
        return [path for path in paths if path is not None and path.exists()]

    def path(self, kind: str) -> Path:
        """The file of `last`, `best` or `epoch_N`."""
        return self.folder / f"{self.name}_{kind}.t"

    def log_epoch(self, record: dict[str, Any]) -> None:
        """Write an epoch's figures to the text log and the JSON lines."""
        if self.writes:
            self.log(show(record))
            self.log.epoch(record)

    def draw_epoch(self, record: dict[str, Any]) -> None:
        """Write an epoch's figures to TensorBoard; if that fails, one warning, and on without."""
        if self.board is None:
            return
        try:
            for name, value in record.items():
                self.board.add_scalar(name, value, record["epoch"])
            self.board.flush()
        except Exception as error:  # of whatever TensorBoard, protobuf and the disk do to each other
            self.board = None
            reason = getattr(error, "strerror", None) or one_line(error)[:160]
            warn(f"--vis_log_path {self.flags['--vis_log_path']}: cannot be written ({reason}); the run goes "
                 "on without TensorBoard")


def show(values: dict[str, float]) -> str:
    """Named numbers on one line."""
    return " ".join(f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4g}"
                    for name, value in values.items())
