"""What every room shares: errors, atomic files, the log of a run. Imports no torch."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

# What torch and its libraries say in a RuntimeError where memory or threads run out.
NO_MEMORY = ("(?i)out of memory|can't allocate memory|not enough memory|alloc_failed|bad_alloc|"
             "could not create a (primitive|memory)|can't start new thread")


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


def is_first_process() -> bool:
    """Whether this is the only process, or the one that speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def warn(message: str) -> None:
    """Print one warning line to stderr, which may be gone; of several processes, the first does."""
    with contextlib.suppress(BrokenPipeError):
        if is_first_process():
            tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def as_user_error(fault: str, mend: str) -> Iterator[None]:
    """Turn any error in the block into a `UserError` that adds its text, as damaged files and foreign code
    make libraries stumble in many ways.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"{fault} ({one_line(reason)[:160]}); {mend}") from None


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
    with as_user_error(f"{flag}: Matplotlib, which draws the figures, does not load",
                       f"run: pip install --upgrade matplotlib{otherwise}"):
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401


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
    with as_user_error(f"{flag} {path}: cannot be written", "choose a folder that can"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
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
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--exclude=*",
               "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "pillow")}}


# ------------------------------------------------------------------------------------------- the log of a run
class RunLog:
    """The log of a training run: text, a JSON line an epoch, TensorBoard.

    folder, board: of the files NAME.txt and NAME.jsonl, and of TensorBoard's; None: the terminal alone.
    epoch, step: the first that will be logged, so that what a killed run left of later ones goes; silent:
    write nothing.
    """

    def __init__(self, folder: Path | None, board: Path | None, name: str, epoch: int = 0, step: int = 0,
                 silent: bool = False) -> None:
        self.silent = silent
        self.text = self.lines = self.board = self.steps = None
        if silent or folder is None:
            return
        self.text, self.lines = (make_folder(folder, "--log_path") / f"{name}.{end}"
                                 for end in ("txt", "jsonl"))
        keep_lines_before(self.lines, epoch)
        place = make_folder(board, "--vis_log_path") / name
        with as_user_error("TensorBoard does not start", "run: pip install --upgrade tensorboard protobuf"):
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(place), purge_step=epoch)
            self.steps = SummaryWriter(str(place / "steps"), purge_step=step)

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

    def close(self) -> None:
        """Write what TensorBoard still holds; every epoch was written before."""
        for writer in filter(None, (self.board, self.steps)):
            with contextlib.suppress(OSError):
                writer.close()

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
