"""Decode and resize the training images of a data set once, into .npy arrays that training memory-maps."""
from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.arrays import MANIFEST, manifest, strays
from datasets.images import read_images
from datasets.types import DataSet, ImageSpec, TrainSplit
from utils import (Parser, UserError, add_data_arguments, explain_os_error, filled, make_folder, warn,
                   write_json)


def preprocess(data: DataSet, words: Sequence[str] | None = None) -> None:
    """Write the arrays of both modalities and the manifest beside them, whole or not at all."""
    parser = Parser(description=f"Decode and resize the training images of {data.title} into "
                    "memory-mapped .npy arrays.")
    parser.add_argument("--data-path", type=filled, default=data.path, metavar="DIR",
                        help="folder of the data set")
    parser.add_argument("--arrays", type=filled, metavar="DIR",
                        help="folder for the arrays, as where the data are read-only "
                        "(default: that of the data set)")
    add_data_arguments(parser)
    args = parser.parse_args(words)
    root = Path(args.data_path)
    split = data.train_split(root)
    for line in data.surprises(root, split):
        warn(line)
    folder = arrays_folder(args.data_path, args.arrays, split)
    if found := strays(split, folder):
        warn(f"{', '.join(map(str, found))}: without {MANIFEST}, so made by other code or cut short; "
             "will be replaced (--arrays DIR writes elsewhere)")
    clear(folder)
    try:
        write_arrays(split, root, folder, ImageSpec.from_arguments(vars(args)), args.workers)
    except OSError as error:
        raise UserError(f"--data-path {root}: {explain_os_error(error)}; "
                        "or write elsewhere with --arrays DIR") from None
    print(f"{len(split.visible)} visible and {len(split.infrared)} infrared images of {len(split.pids)} "
          f"persons in {folder}")


def arrays_folder(data_path: str, arrays: str | None, split: TrainSplit) -> Path:
    """The folder to write to; `UserError` if it cannot be written, or holds arrays of another data set."""
    if not arrays:
        try:
            return make_folder(data_path, "--data-path")
        except UserError as error:
            raise UserError(f"{error}, by --arrays DIR") from None
    folder = make_folder(arrays, "--arrays")
    own = {f"{name}_img.npy" for name in split.arrays.names.values()}
    if others := sorted(path for path in folder.glob("train_*_resized_img.npy") if path.name not in own):
        raise UserError(f"--arrays {folder}: {others[0].name} of another data set found, whose "
                        f"{MANIFEST} would be replaced; choose a folder for each data set")
    return folder


def write_arrays(split: TrainSplit, root: Path, folder: Path, spec: ImageSpec, workers: int) -> None:
    """Write temporary arrays, then put all in place; the manifest, which makes them count, comes last."""
    content = manifest(split, root, spec)  # first: later changes are found out
    mine = f"{platform.node()}-{os.getpid()}"
    parts = {folder / f"{name}_{kind}.npy": folder / f".{name}_{kind}.{mine}.part"
             for name in split.arrays.names.values() for kind in ("img", "label")}
    try:
        for side in split.sides:
            images, labels = (parts[folder / f"{split.arrays.names[side.modality]}_{kind}.npy"]
                              for kind in ("img", "label"))
            with open(labels, "wb") as file:
                np.save(file, split.labels(side.modality), allow_pickle=False)
            shape = len(side), spec.height, spec.width, 3
            pixels = np.lib.format.open_memmap(images, "w+", np.uint8, shape)
            reserve(images)
            read_images(side.paths, spec, workers, out=pixels, title=side.modality, silent=False)
            pixels.flush()
        (folder / MANIFEST).unlink(missing_ok=True)
        for final, part in parts.items():
            os.replace(part, final)
        write_json(folder / MANIFEST, content)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def reserve(path: Path) -> None:
    """Take the disk space now, where the system can: a full disk is an error here, later it is a crash."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def clear(folder: Path) -> None:
    """Remove what a killed pre-processing of this machine left half-written."""
    for part in folder.glob(".train_*.part"):
        _, _, owner = part.stem.partition(".train_")[2].partition(".")
        node, _, pid = owner.rpartition("-")
        if not owner or (node == platform.node() and pid.isdecimal() and not is_running(int(pid))):
            part.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether there is a process of this number; always, where the system cannot be asked."""
    try:
        if os.name == "posix":
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
