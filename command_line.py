"""How a script begins and ends: its command line, its signals, its errors. Imports no torch."""
from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils import Interrupted, explain, is_first_process, one_line, warn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# How --gpu is declared.
GPU = {"default": "0", "metavar": "N|cuda:N|mps|cpu", "help": "number of a CUDA device, mps, or cpu"}


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


def add_size_arguments(parser: Parser, of_checkpoint: bool = False) -> None:
    """Declare the image size; of_checkpoint: as the checkpoint was trained with, unless it is given."""
    default = " (default: the checkpoint's)" if of_checkpoint else ""
    for flag, side, pixels in (("--img_w", "width", 144), ("--img_h", "height", 288)):
        parser.add_argument(flag, type=number(16, 4096), default=None if of_checkpoint else pixels,
                            metavar="PIXELS", help=f"image {side}{default}")


def add_data_arguments(parser: Parser, of_checkpoint: bool = False) -> None:
    """Declare the image size and the readers, which every script that reads images takes."""
    add_size_arguments(parser, of_checkpoint)
    parser.add_argument("--workers", type=number(0, 256), default=4, metavar="N",
                        help="parallel readers of images (0: none but the program itself)")


# -------------------------------------------------------------------------------------------- to run a script
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
    if line and (status == 2 or is_first_process()):
        print(f"{program}: {line}", file=sys.stderr)
    sys.exit(status)


def interrupt(signum: int, frame: object) -> NoReturn:
    """Handle a signal that ends the program."""
    raise Interrupted(signum, f"ended by {signal.Signals(signum).name}")
