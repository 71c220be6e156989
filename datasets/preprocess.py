"""Decode and resize the training images of a data set once, into .npy arrays that training memory-maps."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.arrays import MANIFEST, manifest, strays
from datasets.images import read_images
from datasets.types import DataSet, ImageSpec, TrainSplit
from command_line import Parser, add_data_arguments, filled
from utils import UserError, explain_os_error, make_folder, warn, write_json

HALF_WRITTEN = ".pre_process_"  # begins the name of a folder for arrays that are not whole yet


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
    split = data.train_split(args.data_path)
    for line in data.surprises(args.data_path, split):
        warn(line)
    folder = make_folder(args.arrays or args.data_path, "--arrays")
    warn_of_others(split, folder)
    try:
        write_arrays(split, args.data_path, folder, ImageSpec.from_arguments(vars(args)), args.workers)
    except OSError as error:
        raise UserError(f"--data-path {args.data_path}: {explain_os_error(error)}; "
                        "or write elsewhere with --arrays DIR") from None
    print(f"{len(split.visible)} visible and {len(split.infrared)} infrared images of {len(split.pids)} "
          f"persons in {folder}")


def warn_of_others(split: TrainSplit, folder: Path) -> None:
    """Warn of arrays that will be replaced, and of half-written ones; `UserError` for another data set's."""
    own = {f"{name}_img.npy" for name in split.arrays.names.values()}
    if others := sorted(path for path in folder.glob("train_*_resized_img.npy") if path.name not in own):
        raise UserError(f"--arrays {folder}: {others[0].name} of another data set found, whose "
                        f"{MANIFEST} would be replaced; choose a folder for each data set")
    if found := strays(split, folder):
        warn(f"{', '.join(map(str, found))}: without {MANIFEST}, so made by other code or cut short; "
             "will be replaced (--arrays DIR writes elsewhere)")
    for path in folder.glob(f"{HALF_WRITTEN}*"):
        warn(f"{path}: of a pre-processing that runs, or that was killed; if none runs, remove the folder")


def write_arrays(split: TrainSplit, root: str, folder: Path, spec: ImageSpec, workers: int) -> None:
    """Write the arrays to a temporary folder, then put them in place; the manifest is last."""
    content = manifest(split, root, spec)  # first: later changes are found out
    with tempfile.TemporaryDirectory(prefix=HALF_WRITTEN, dir=folder) as parts:
        for side in split.sides:
            stem = f"{parts}/{split.arrays.names[side.modality]}"
            np.save(f"{stem}_label.npy", split.labels(side.modality), allow_pickle=False)
            pixels = np.lib.format.open_memmap(f"{stem}_img.npy", "w+", np.uint8,
                                               (len(side), spec.height, spec.width, 3))
            reserve(f"{stem}_img.npy")
            read_images(side.paths, spec, workers, out=pixels, title=side.modality, silent=False)
            pixels.flush()
        (folder / MANIFEST).unlink(missing_ok=True)
        for part in Path(parts).iterdir():
            os.replace(part, folder / part.name)
    write_json(folder / MANIFEST, content)


def reserve(path: str) -> None:
    """Take the disk space now, where the system can: a full disk is an error here, later it is a crash."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.stat(path).st_size)
