"""Decode and resize the training images of a data set once, into .npy arrays that training memory-maps."""
from __future__ import annotations

import argparse
import contextlib
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.arrays import MANIFEST, manifest, marks, strays
from datasets.images import read_image
from datasets.types import DataSet, Images, ImageSpec, TrainSplit
from utils import (Parser, UserError, add_data_arguments, explain_os_error, filled, in_processes, locked,
                   make_folder, one_line_warnings, warn, write_json)

CHUNK = 16  # images a task
Layout = tuple[str, int, tuple[int, ...]]  # of an array on disk, see `make_array`


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
    folder = arrays_folder(args, data)
    if found := strays(split, folder):
        warn(f"{', '.join(map(str, found))}: without {MANIFEST}, so made by other code or cut short; "
             "will be replaced (--arrays DIR writes elsewhere)")
    with exclusive("--arrays" if args.arrays else "--data-path", folder, data.arrays.script):
        write_arrays(root, folder, split, args.img_h, args.img_w, min(args.workers, os.cpu_count() or 1))
    print(f"{len(split.visible)} visible and {len(split.infrared)} infrared images of {len(split.pids)} "
          f"persons in {folder}")


def arrays_folder(args: argparse.Namespace, data: DataSet) -> Path:
    """The folder to write to; `UserError` if it cannot be written, or holds arrays of another data set."""
    if not args.arrays:
        try:
            return make_folder(args.data_path, "--data-path")
        except UserError as error:
            raise UserError(f"{error}, by --arrays DIR") from None
    folder = make_folder(args.arrays, "--arrays")
    own = {f"{name}_img.npy" for name in data.arrays.names.values()}
    if others := sorted(path for path in folder.glob("train_*_resized_img.npy") if path.name not in own):
        raise UserError(f"--arrays {folder}: {others[0].name} of another data set found, whose "
                        f"{MANIFEST} would be replaced; choose a folder for each data set")
    return folder


@contextlib.contextmanager
def exclusive(flag: str, folder: Path, script: str) -> Iterator[None]:
    """Keep a second pre-processing off the same folder, and clear away what an interrupted one left."""
    with locked(folder / f".{Path(script).stem}.lock", (
            f"{flag} {folder}: a living process is pre-processing this folder; wait for it")):
        clear(folder)
        try:
            yield
        finally:
            clear(folder)


def clear(folder: Path) -> None:
    """Remove what an interrupted pre-processing left half-written."""
    for pattern in (".train_*.part", ".train_*.tmp"):
        for stray in folder.glob(pattern):
            stray.unlink()


def write_arrays(root: Path, folder: Path, split: TrainSplit, height: int, width: int, workers: int) -> None:
    """Write temporary arrays, then put all in place; the manifest, which makes them count, comes last."""
    parts: dict[Path, Path] = {}
    layouts: dict[str, Layout] = {}
    try:
        # first: later changes are found out
        content = manifest(split, root, height, width, marks(split, root, folder))
        for side in split.sides:
            name = split.arrays.names[side.modality]
            images, labels = (folder / f"{name}_{kind}.npy" for kind in ("img", "label"))
            parts |= {final: folder / f".{final.stem}.part" for final in (images, labels)}
            save(parts[labels], split.labels(side.modality))
            layouts[side.modality] = make_array(parts[images], (len(side), height, width, 3))
        decode(split.sides, layouts, workers)
        (folder / MANIFEST).unlink(missing_ok=True)
        for final, part in parts.items():
            os.replace(part, final)
        write_json(folder / MANIFEST, content)
    except OSError as error:
        raise UserError(f"--data-path {root}: {explain_os_error(error)}; "
                        "or write elsewhere with --arrays DIR") from None


def save(path: Path, array: np.ndarray) -> None:
    """Write a .npy under exactly this name."""
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def make_array(path: Path, shape: tuple[int, ...]) -> Layout:
    """An empty .npy of uint8 on disk, and what a worker maps its pixels by: path, offset in bytes, shape."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    offset = array.offset
    del array
    reserve(path, offset + int(np.prod(shape)))
    return str(path), offset, shape


def decode(sides: tuple[Images, ...], layouts: dict[str, Layout], workers: int) -> None:
    """Fill the memory-mapped arrays of both modalities with a pool of processes, or in this one if none."""
    chunks = [(side.modality, start, side.paths[start:start + CHUNK]) for side in sides
              for start in range(0, len(side), CHUNK)]
    ended = (f"--workers {workers}: a process that decodes images was ended; "
             "free memory, or use fewer --workers")
    if workers == 0:
        map_arrays(layouts)
        done = (decode_rows(*chunk) for chunk in chunks)
    else:
        done = in_processes(decode_rows, chunks, workers, ended, partial(start_worker, layouts))
    with contextlib.closing(done), tqdm(total=sum(map(len, sides)), unit="image", disable=None) as bar:
        for images in done:
            bar.update(images)


def reserve(path: Path, size: int) -> None:
    """Take the disk space now, where the system can: a full disk is an error here, later it is a crash."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def start_worker(layouts: dict[str, Layout]) -> None:
    """Open the arrays in a worker process, which ends with its parent."""
    one_line_warnings()
    threading.Thread(target=end_with_parent, daemon=True).start()
    map_arrays(layouts)


def map_arrays(layouts: dict[str, Layout]) -> None:
    """Map the arrays for `decode_rows`."""
    decode_rows.arrays = {modality: np.memmap(path, np.uint8, "r+", offset, shape)
                          for modality, (path, offset, shape) in layouts.items()}


def end_with_parent() -> None:
    """End this worker process when its parent is gone, however that ended."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def decode_rows(modality: str, start: int, paths: tuple[str, ...]) -> int:
    """Decode images into the rows of one array from `start` on; returns their number."""
    array = decode_rows.arrays[modality]
    for row, path in enumerate(paths, start):
        array[row] = read_image(path, ImageSpec(*array.shape[1:3]))
    return len(paths)
