"""The data sets by name, the AGW line's function names, and the check of a copy.

    python data_manager.py DIR [--all]

checks the copy of a data set in DIR: its counts against the published ones, and what is missing, empty,
unreadable or misnamed. Exit status 0: usable; 1: training or testing would refuse it; 2: a mistake in the
command.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.check import SAMPLE, Report, describe
from datasets.check import check as check_copy
from datasets.folders import Folders
from datasets.llcm import LLCM
from datasets.regdb import NAMES, RegDB
from datasets.sysu import GALLERIES, SysuMM01
from datasets.types import INFRARED, VISIBLE, DataSet, Images, draw
from command_line import Parser, run
from utils import UserError

DATASETS: dict[str, DataSet] = {data.name: data for data in (SysuMM01(), RegDB(), LLCM(), Folders())}


# -------------------------------------------------------------------------------------------------- arguments
def add_dataset_flags(parser: Parser, script: str) -> None:
    """Declare the flags of all data sets that a script ("train" or "test") takes."""
    for data in DATASETS.values():
        data.add_flags(parser, script)


def resolve_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the data set (data path, direction), and refuse flags that belong to others.

    Raises `UserError` naming the flag, or both where two contradict each other.
    """
    data, parser = DATASETS[args.dataset], Parser()
    for script in ("train", "test"):
        add_dataset_flags(parser, script)
    for name in {name: None for other in DATASETS.values() for name in other.flags}:
        value, usual = getattr(args, name, parser.get_default(name)), parser.get_default(name)
        if value not in (usual, None) and name not in data.flags:
            titles = " and ".join(other.title for other in DATASETS.values() if name in other.flags)
            values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
            raise UserError(f"{' '.join([parser.flag(name), *map(str, values)])} belongs to {titles}, "
                            f"but the data set is {data.name}; leave it out")
    vars(args).update(data.resolve(vars(args)))
    return args


# -------------------------------------------------------------------------------------- names of the AGW line
LLCM_MODES = {1: VISIBLE, 2: INFRARED}
Listed = tuple[list[str], np.ndarray, np.ndarray]  # N paths, pids (N,), camids (N,)


def process_query_sysu(data_path: str, mode: str = "all") -> Listed:
    """The infrared queries of SYSU-MM01: paths, pids and camids."""
    return listed(DATASETS["sysu"].side(data_path, "test", INFRARED, mode))


def process_gallery_sysu(data_path: str, mode: str = "all", trial: int = 0, shot: int = 1,
                         gallery: str = "random") -> Listed:
    """One visible gallery of SYSU-MM01: paths, pids and camids. Trials count from 0."""
    images = DATASETS["sysu"].side(data_path, "test", VISIBLE, mode)
    return listed(GALLERIES[gallery](images, trial, shot))


def process_test_regdb(data_path: str, trial: int = 1,
                       modal: str = "visible") -> tuple[list[str], np.ndarray]:
    """The test images of a modality ('visible' or 'thermal') of one split of RegDB: N paths, labels (N,)."""
    modality = {name: modality for modality, name in NAMES.items()}[modal]
    return listed(DATASETS["regdb"].test_images(data_path, trial)[modality])[:2]


def process_query_llcm(data_path: str, mode: int = 1) -> Listed:
    """The queries of LLCM, mode 1: visible, 2: infrared: paths, pids and camids."""
    modality = LLCM_MODES[mode]
    return listed(DATASETS["llcm"].test_images(data_path)[modality])


def process_gallery_llcm(data_path: str, mode: int = 1, trial: int = 0) -> Listed:
    """A gallery of LLCM, mode 1: visible, 2: infrared; trials from 0: paths, pids and camids."""
    modality = LLCM_MODES[mode]
    return listed(draw(DATASETS["llcm"].test_images(data_path)[modality], trial))


def listed(images: Images) -> Listed:
    """Images as the AGW line's functions return them."""
    return list(images.paths), images.pids, images.camids


# ---------------------------------------------------------------------------------------- the check of a copy
def recognise(root: Path) -> DataSet | None:
    """The data set whose layout a folder has, by its sub-folders; None if it has none."""
    best = max(DATASETS.values(), key=lambda data: data.present(root))
    return best if best.present(root) else None


def check(root: Path, every: bool) -> tuple[DataSet | None, Report]:
    """A folder's data set (None if it holds none), and what was found; every: open all images."""
    data = recognise(root)
    if data is not None:
        return data, check_copy(data, root, every)
    inside = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and recognise(folder)]
    layouts = " or ".join(f"{data.title} ({', '.join(data.folders)})" for data in DATASETS.values())
    advice = f"check {inside[0]}, which has one" if inside else "name the folder that holds these"
    report = Report(root)
    report.refuse("layout", f"{root}: no data set found, {layouts} expected; {advice}")
    return None, report


def main(words: Sequence[str] | None = None) -> None:
    """Check the folder that the command line names."""
    titles = " or ".join(data.title for data in DATASETS.values())
    parser = Parser(description=f"Check a copy of {titles}. Exit status 0: usable, 1: not usable.")
    parser.add_argument("dir", metavar="DIR", help="folder of the data set")
    parser.add_argument("--all", action="store_true", help=f"open every image, not only {SAMPLE}")
    args = parser.parse_args(words)
    root = Path(args.dir)
    if not root.is_dir():
        raise UserError(f"DIR {root}: {'a file' if root.exists() else 'no such folder'}; "
                        f"name the folder of {titles}")
    data, report = check(root, args.all)
    text = "\n".join(describe(data.title if data else "", report))
    print("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))
    sys.exit(0 if report.usable else 1)


if __name__ == "__main__":
    run(main)
