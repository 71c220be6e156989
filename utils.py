"""What every script shares: errors, the command line, atomic files, the log of a run. Imports no torch."""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

# What torch and its libraries say in a RuntimeError where memory or threads run out.
NO_MEMORY = ("(?i)out of memory|can't allocate memory|not enough memory|alloc_failed|bad_alloc|"
             "could not create a (primitive|memory)|can't start new thread")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# How --gpu is declared.
GPU = {"default": "0", "metavar": "N|cuda:N|mps|cpu", "help": "number of a CUDA device, mps, or cpu"}


# ----------------------------------------------------------------------------------------------------- errors
class UserError(Exception):
    """Something that the user can mend, in one line: file or flag, what was found, what was expected."""


class Interrupted(BaseException):
    """A signal ended the program; no `except Exception` takes it for a fault."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def one_line(text: object) -> str:
    """Put a text on one line and escape what a terminal would obey rather than show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(text).split()))


def warn(message: str) -> None:
    """Print one warning line to stderr."""
    tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`; turn what a user can cause into one line on stderr and an exit status.

    Status 2 for a `UserError` or an error of the file system, 128 + signal for SIGINT, SIGTERM and SIGHUP.
    """
    program, status, line = Path(sys.argv[0]).name, 0, ""
    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, interrupt)
    # libraries warn in one line too, and a file name may hold what the terminal's encoding does not
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    threading.excepthook = lambda error: warn(f"{error.thread and error.thread.name}: {error.exc_value}")
    try:
        sys.stdout.reconfigure(errors="backslashreplace")
        main()
        sys.stdout.flush()
    except Interrupted as error:
        status, line = 128 + error.signum, one_line(error)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # the reader of our output has gone: nothing to tell it
        status = 1
    except Exception as error:
        if (cause := explain(error)) is None:
            raise
        status, line = 2, f"error: {cause}"
    if line and (status == 2 or os.environ.get("RANK", "0") == "0"):  # of several processes, one says it
        print(f"{program}: {line}", file=sys.stderr)
    sys.exit(status)


def interrupt(signum: int, frame: object) -> NoReturn:
    """Handle a signal that ends the program."""
    raise Interrupted(signum, f"ended by {signal.Signals(signum).name}")


def explain(error: Exception) -> str | None:
    """Say in one line what a user can mend; None for any other error, which is ours."""
    if isinstance(error, UserError):
        return one_line(error)
    if isinstance(error, OSError):
        return explain_os_error(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError)
                                          and re.search(NO_MEMORY, str(error))):
        return (f"out of memory ({one_line(error)[:160] or type(error).__name__}); free some, or use a "
                "smaller --batch-size or --test-batch, fewer --workers, or --data-device cpu")
    return None


def explain_os_error(error: OSError) -> str:
    """Say in one line what the operating system refused, with the file where it is known."""
    if error.strerror is None:
        return one_line(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; free space, or mend the path or its permissions"


def require_matplotlib(flag: str, otherwise: str = "") -> None:
    """Load Matplotlib, which takes a second, before the work that its figures show.

    Raises `UserError` naming the flag that asks for figures where it does not load.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except Exception as error:  # whatever Matplotlib and NumPy do to each other
        what = f"{type(error).__name__}: {one_line(error)[:120]}"
        raise UserError(f"{flag}: Matplotlib, which draws the figures, does not load ({what}); run: pip "
                        f"install --upgrade matplotlib{otherwise}") from None


# ------------------------------------------------------------------------------------------- the command line
class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Add its default to the help of each argument whose help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or "(default: " in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit status 2.

    It takes no abbreviated flags, and takes `-` and `_` within a flag for the same. Where two data sets
    declare a flag of the same name, it is one flag.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, conflict_handler="resolve", formatter_class=HelpFormatter,
                         **kwargs)

    def parse_known_args(self, args: Sequence[object] | None = None,
                         namespace: argparse.Namespace | None = None) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else map(str, args)
        return super().parse_known_args([self.as_declared(word) for word in words], namespace)

    def as_declared(self, word: str) -> str:
        """Spell a flag of the command line as it was declared."""
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            return word
        known = {flag.replace("_", "-"): flag for flag in self._option_string_actions}
        return known.get(name.replace("_", "-"), name) + equals + value

    def flag(self, dest: str) -> str:
        """The flag of an argument as it was declared."""
        return next(action.option_strings[0] for action in self._actions if action.dest == dest)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def number(low: float, high: float = 10 ** 6, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a whole (or, for kind=float, any finite) number from `low` to `high`."""
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} found, {what} from {low:g} to {high:g} expected")
        return value

    return parse


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
    parser.add_argument("--img_w", type=number(16, 4096), default=144, metavar="PIXELS", help="image width")
    parser.add_argument("--img_h", type=number(16, 4096), default=288, metavar="PIXELS", help="image height")
    parser.add_argument("--workers", type=number(0, 256), default=4, metavar="N",
                        help="parallel readers of images (0: none but the program itself)")


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


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
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


# ------------------------------------------------------------------------------------------- the log of a run
class RunLog:
    """The log of a training run: text, a JSON line an epoch, TensorBoard.

    folder, board: of the files NAME.txt and NAME.jsonl, and of TensorBoard's; None: the terminal alone.
    epoch, step: the first that will be logged, so that what a killed run left of later ones goes; silent:
    write nothing.
    """

    def __init__(self, folder: Path | None, board: Path | None, name: str, epoch: int = 0, step: int = 0,
                 silent: bool = False) -> None:
        self.silent, self.text, self.lines, self.board, self.steps = silent, None, None, None, None
        if silent or folder is None:
            return
        self.text, self.lines = (make_folder(folder, "--log_path") / f"{name}.{end}"
                                 for end in ("txt", "jsonl"))
        keep_lines_before(self.lines, epoch)
        place = make_folder(board, "--vis_log_path") / name
        try:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(place), purge_step=epoch)
            self.steps = SummaryWriter(str(place / "steps"), purge_step=step)
        except Exception as error:  # whatever TensorBoard and protobuf do to each other
            raise UserError(f"TensorBoard does not start ({type(error).__name__}: {one_line(error)[:120]}); "
                            "run: pip install --upgrade tensorboard protobuf") from None

    def __call__(self, line: str) -> None:
        """Write a line to the text file, then to the terminal, which may be gone."""
        if self.silent:
            return
        if self.text:
            append_line(self.text, line)
        with contextlib.suppress(BrokenPipeError):
            tqdm.write(line)

    def step(self, number: int, values: dict[str, float]) -> None:
        """Write the figures of a step, counted over all epochs, to TensorBoard."""
        for name, value in values.items() if self.steps else ():
            self.steps.add_scalar(name, value, number)

    def epoch(self, record: dict[str, Any]) -> None:
        """Write the figures of an epoch as a JSON line and to TensorBoard."""
        if not self.lines:
            return
        append_line(self.lines, json.dumps(record))
        for name, value in record.items():
            self.board.add_scalar(name, value, record["epoch"])
        self.board.flush()

    def arguments(self, values: dict[str, Any]) -> None:
        """Write the arguments of a run as text and, in TensorBoard, as what its HPARAMS page compares."""
        self(f"arguments {json.dumps(values)}")
        if self.board:
            from torch.utils.tensorboard.summary import hparams
            plain = {name: value if isinstance(value, (bool, int, float)) else str(value)
                     for name, value in values.items()}
            for summary in hparams(plain, {"bnneck/rank-1": 0, "bnneck/mAP": 0}):
                self.board.file_writer.add_summary(summary)

    def picture(self, name: str, pixels: Any) -> None:
        """Show a picture (3, height, width) uint8 in TensorBoard."""
        if self.board:
            self.board.add_image(name, pixels)


def append_line(path: Path, line: str) -> None:
    """Write a line at the end of a text file; an error of the file system names the file."""
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def keep_lines_before(path: Path, epoch: int) -> None:
    """Keep the JSON lines of the epochs before this one; a line that was cut short goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["epoch"] < epoch:
                kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
