"""The pre-processed training arrays on disk: their names, their manifest, and the checks before their use.

The manifest, written beside the arrays, says from which files they were made: of each image its path, its
mark and when it was last modified. An image whose size and time are as recorded need not be opened to know
its mark.
"""
from __future__ import annotations

import hashlib
import json
import os
import shlex
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.images import FILTER
from datasets.types import TrainSplit
from utils import UserError, one_line

MANIFEST = "train_resized_img.json"
FORMAT = 1


# ------------------------------------------------------------------------------------------------------ marks
class Mark(NamedTuple):
    """What tells a file from another: 'bytes-checksum' (see `read_mark`), and when it last changed, in ns."""

    text: str
    modified: int


Marks = dict[str, list[Mark]]  # of the images of each modality, in their order


def marks(split: TrainSplit, root: str | Path, folder: str | Path | None = None) -> Marks:
    """The marks of all training images, read unless the manifest speaks for a file by its size and time.

    folder: of the arrays, here and below, if that is not the data set's.
    """
    known = recorded_marks(Path(folder or root))
    return {side.modality: [mark_of(path, known.get((side.modality, relative(path, root))))
                            for path in side.paths] for side in split.sides}


def mark_of(path: str, known: Mark | None) -> Mark:
    """A file's mark, which is read unless the known one speaks for the file."""
    if known is not None:
        status = os.stat(path)
        if (f"{status.st_size}-", status.st_mtime_ns) == (known.text[:-8], known.modified):
            return known
    return read_mark(path)


def read_mark(path: str) -> Mark:
    """'bytes-checksum' of a file: its size, and the CRC-32 of 4 KiB of its beginning, middle and end."""
    with open(path, "rb") as file:
        status, checksum = os.fstat(file.fileno()), 0
        for place in (0, status.st_size // 2, max(0, status.st_size - 4096)):
            file.seek(place)
            checksum = zlib.crc32(file.read(4096), checksum)
    return Mark(f"{status.st_size}-{checksum:08x}", status.st_mtime_ns)


def relative(path: str, root: str | Path) -> str:
    """The path below the data set's folder."""
    return Path(path).relative_to(root).as_posix()


def listing(split: TrainSplit, root: str | Path, marks: Marks) -> dict[str, list[str]]:
    """'relative/path mark' of every image, by modality."""
    return {side.modality: [f"{relative(path, root)} {mark.text}"
                            for path, mark in zip(side.paths, marks[side.modality])] for side in split.sides}


def fingerprint(split: TrainSplit, root: str | Path, marks: Marks) -> str:
    """SHA-256 over modality, relative path, mark and pid of every training image."""
    digest, lines = hashlib.sha256(), listing(split, root, marks)
    for side in split.sides:
        for line, pid in zip(lines[side.modality], side.pids):
            digest.update(f"{side.modality} {line} {pid}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------- manifest
def manifest(split: TrainSplit, root: str | Path, height: int, width: int, marks: Marks) -> dict[str, Any]:
    """What is recorded beside the arrays: size in pixels, filter, image counts, and the files they are of."""
    images = listing(split, root, marks)
    return {"format": FORMAT, "height": height, "width": width, "filter": FILTER,
            "count": {modality: len(lines) for modality, lines in images.items()}, "images": images,
            "modified": {modality: [mark.modified for mark in side] for modality, side in marks.items()}}


def recorded_marks(root: Path) -> dict[tuple[str, str], Mark]:
    """The marks that a manifest records, by modality and relative path; none from one without times."""
    try:
        content = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        return {(modality, line.rpartition(" ")[0]): Mark(line.rpartition(" ")[2], time)
                for modality, times in content["modified"].items()
                for line, time in zip(content["images"][modality], times)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # `open_arrays` says what is wrong with it


def present(split: TrainSplit, root: str | Path, height: int, width: int,
            folder: str | Path | None = None) -> bool:
    """Whether a data set has pre-processed arrays; `UserError` for some, or a folder, without manifest."""
    if split.arrays is None:
        return False
    if (Path(folder or root) / MANIFEST).exists():
        return True
    if found := strays(split, folder or root):
        raise UserError(f"{found[0]}: found without {MANIFEST}, which says what it was made "
                        f"from; {renew(split, root, height, width, folder)}")
    if folder:
        raise UserError(f"--arrays {folder}: no {MANIFEST} in it; "
                        f"{renew(split, root, height, width, folder)}")
    return False


def strays(split: TrainSplit, folder: str | Path) -> list[Path]:
    """The arrays in a folder without their manifest: other code's, or of a pre-processing cut short."""
    paths = [Path(folder) / f"{name}_img.npy" for name in split.arrays.names.values()]
    return [] if (Path(folder) / MANIFEST).exists() else [path for path in paths if path.exists()]


def renew(split: TrainSplit, root: str | Path, height: int, width: int,
          folder: str | Path | None = None) -> str:
    """The command that makes the arrays anew."""
    words = ["--data-path", str(root), *(["--arrays", str(folder)] if folder else [])]
    return f"run: python {split.arrays.script} {shlex.join(words)} --img_w {width} --img_h {height}"


# ----------------------------------------------------------------------------------------------------- arrays
def open_arrays(split: TrainSplit, root: str | Path, height: int, width: int, marks: Marks,
                folder: str | Path | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Memory-map the arrays of both modalities, once they are known to fit the images and the size."""
    path, command = Path(folder or root) / MANIFEST, renew(split, root, height, width, folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        size, made_from = (content["height"], content["width"]), {**content["images"]}
        checks = (("format", content["format"], FORMAT), ("filter", content["filter"], FILTER),
                  ("height x width", "{} x {}".format(*size), f"{height} x {width}"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not the record of pre-processing ({what}); {command}") from None
    for what, found, expected in checks:
        if found != expected:
            raise UserError(f"{path}: arrays of {what} {found} found, {expected} expected; {command}")
    for modality, now in listing(split, root, marks).items():
        then = made_from.get(modality)
        if then != now:
            raise UserError(f"{path}: {difference(then, now, modality)}; {command}")
    return {modality: open_array(path.parent / name, split.labels(modality), height, width, command)
            for modality, name in split.arrays.names.items()}


def difference(then: object, now: list[str], modality: str) -> str:
    """Say in words how the images differ from those that an array was made from."""
    then = then if isinstance(then, list) else []
    changed = sorted(set(map(str, then)) ^ set(now))
    example = f" ({changed[0].rpartition(' ')[0]} differs)" if changed else ""
    return (f"the arrays were made from {len(then)} {modality} images, the training lists now give "
            f"{len(now)} that are not the same{example}")


def open_array(stem: Path, labels: np.ndarray, height: int, width: int,
               command: str) -> tuple[np.ndarray, np.ndarray]:
    """Memory-map a pair of arrays; any but whole ones of the expected shape and dtype are a `UserError`."""
    pixels = load_npy(Path(f"{stem}_img.npy"), (len(labels), height, width, 3), np.uint8, command)
    stored = load_npy(Path(f"{stem}_label.npy"), (len(labels),), np.int64, command)
    if not np.array_equal(stored, labels):  # other code of this field writes arrays of the same names
        raise UserError(f"{stem}_label.npy: labels found that are not those of the lists; {command}")
    return pixels, labels


def load_npy(path: Path, shape: tuple[int, ...], dtype: type, command: str) -> np.ndarray:
    """Memory-map a .npy of a known shape and dtype (never a pickled one), copied on writing.

    Raises `UserError` naming the file, what it holds and the command that makes it anew.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {command}") from None
    except Exception as error:  # a damaged header makes NumPy stumble in many ways
        what = one_line(error)[:160]
        raise UserError(f"{path}: not a whole .npy of plain numbers ({what}); {command}") from None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path}: {found} found, {np.dtype(dtype)} {shape} expected; {command}")
    return array.view(np.ndarray)
