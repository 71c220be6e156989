"""The pre-processed training arrays on disk: their names, their manifest, and the checks before their use.

The manifest, written beside the arrays, says how they were made, and from which files: of each image its
path, its size in bytes and a checksum. At a start, paths and sizes are compared; no image is opened.
"""
from __future__ import annotations

import hashlib
import json
import os
import shlex
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import describe_entry, not_read
from datasets.images import FILTER
from datasets.types import ImageSpec, TrainSplit
from utils import UserError, one_line

MANIFEST = "train_resized_img.json"
FORMAT = 1
Listing = dict[str, list[str]]  # a line for each image, by modality


# ------------------------------------------------------------------------------------------------- the images
def fingerprint(split: TrainSplit, root: str | Path, folder: str | Path | None = None) -> str:
    """SHA-256 over modality, relative path, size, checksum and pid of every training image.

    folder: of the arrays, here and below, if that is not the data set's. Checksums come from the manifest if
    arrays were made of images of these names and sizes; otherwise, 12 KiB of each file are read.
    """
    path = Path(folder or root) / MANIFEST
    try:
        lines = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "{}")["images"]
        current = without_checksums(lines) == list_sizes(split, root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        current = False  # `open_arrays` says what is wrong with it
    lines = lines if current else list_checksums(split, root)
    digest = hashlib.sha256()
    for side in split.sides:
        for line, pid in zip(lines[side.modality], side.pids):
            digest.update(f"{side.modality} {line} {pid}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def list_checksums(split: TrainSplit, root: str | Path) -> Listing:
    """'relative/path bytes-checksum' of every image."""
    return {side.modality: [f"{relative(path, root)} {checksum(path)}" for path in side.paths]
            for side in split.sides}


def list_sizes(split: TrainSplit, root: str | Path) -> Listing:
    """'relative/path bytes' of every image."""
    return {side.modality: [f"{relative(path, root)} {os.stat(path).st_size}" for path in side.paths]
            for side in split.sides}


def without_checksums(lines: Listing) -> Listing:
    """The lines of `list_sizes`, from those of `list_checksums`."""
    return {modality: [line.rpartition("-")[0] for line in side] for modality, side in lines.items()}


def relative(path: str, root: str | Path) -> str:
    """The path below the data set's folder."""
    return Path(path).relative_to(root).as_posix()


def checksum(path: str) -> str:
    """'bytes-checksum' of a file: its size, and the CRC-32 of 4 KiB of its beginning, middle and end."""
    try:
        with open(path, "rb") as file:
            size, crc = os.fstat(file.fileno()).st_size, 0
            for place in (0, size // 2, max(0, size - 4096)):
                file.seek(place)
                crc = zlib.crc32(file.read(4096), crc)
    except OSError as error:
        raise not_read(path, error) from None
    return f"{size}-{crc:08x}"


# --------------------------------------------------------------------------------------------------- manifest
def manifest(split: TrainSplit, root: str | Path, spec: ImageSpec) -> dict[str, Any]:
    """What is recorded beside the arrays: size in pixels, filter, image counts, and the files they are of."""
    images = list_checksums(split, root)
    return {"format": FORMAT, "height": spec.height, "width": spec.width, "filter": FILTER,
            "count": {modality: len(lines) for modality, lines in images.items()}, "images": images}


def strays(split: TrainSplit, folder: str | Path) -> list[Path]:
    """The arrays in a folder without their manifest: other code's, or of a pre-processing cut short."""
    paths = [Path(folder) / f"{name}_img.npy" for name in split.arrays.names.values()]
    return [] if (Path(folder) / MANIFEST).is_file() else [path for path in paths if path.exists()]


def renew(split: TrainSplit, root: str | Path, spec: ImageSpec, folder: str | Path | None = None) -> str:
    """The command that makes the arrays anew."""
    words = ["--data-path", str(root), *(["--arrays", str(folder)] if folder else [])]
    return (f"run: python {split.arrays.script} {shlex.join(words)} "
            f"--img_w {spec.width} --img_h {spec.height}")


# ----------------------------------------------------------------------------------------------------- arrays
def open_arrays(split: TrainSplit, root: str | Path, spec: ImageSpec,
                folder: str | Path | None = None) -> dict[str, np.ndarray] | None:
    """Memory-map the pixels (N, height, width, 3) of both modalities; None where there are no arrays.

    Raises `UserError` naming the file, and the command that makes it anew, unless they were made of images of
    these names and sizes, with this spec; also for arrays, or a folder of them, without manifest.
    """
    if split.arrays is None:
        return None
    path, command = Path(folder or root) / MANIFEST, renew(split, root, spec, folder)
    if not path.is_file():
        if found := strays(split, path.parent):
            raise UserError(f"{found[0]}: found without {MANIFEST}, which says what it was made from; "
                            f"{command}")
        if folder:
            raise UserError(f"--arrays {folder}: no {MANIFEST} in it; {command}")
        return None
    require_current(path, split, root, spec, command)
    return {modality: open_array(path.parent / name, split.labels(modality), spec, command)
            for modality, name in split.arrays.names.items()}


def require_current(path: Path, split: TrainSplit, root: str | Path, spec: ImageSpec, command: str) -> None:
    """Raise `UserError` unless a manifest tells of these images, by names and sizes, and this spec."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"], content["filter"], f"{content['height']} x {content['width']}"
        made_from = without_checksums(content["images"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {one_line(error)[:80]}"
        raise UserError(f"{path}: not the record of pre-processing ({what}); {command}") from None
    expected = FORMAT, FILTER, f"{spec.height} x {spec.width}"
    for what, then, now in zip(("format", "filter", "height x width"), found, expected):
        if then != now:
            raise UserError(f"{path}: arrays of {what} {then} found, {now} expected; {command}")
    for modality, now in list_sizes(split, root).items():
        then = made_from.get(modality, [])
        if then != now:
            example = min(set(then) ^ set(now), default="their order ").rpartition(" ")[0]
            raise UserError(f"{path}: the arrays were made from {len(then)} {modality} images, the training "
                            f"lists now give {len(now)} that are not the same ({example} differs); {command}")


def open_array(stem: Path, labels: np.ndarray, spec: ImageSpec, command: str) -> np.ndarray:
    """Memory-map an array; any but a whole one of the expected shape, dtype and labels is a `UserError`."""
    pixels = load_npy(Path(f"{stem}_img.npy"), (len(labels), spec.height, spec.width, 3), np.uint8, command)
    stored = load_npy(Path(f"{stem}_label.npy"), (len(labels),), np.int64, command)
    if not np.array_equal(stored, labels):  # other code of this field writes arrays of the same names
        raise UserError(f"{stem}_label.npy: labels found that are not those of the lists; {command}")
    return pixels


def load_npy(path: Path, shape: tuple[int, ...], dtype: type, command: str) -> np.ndarray:
    """Memory-map a .npy of a known shape and dtype (never a pickled one), copied on writing.

    Raises `UserError` naming the file, what it holds and the command that makes it anew.
    """
    if not path.is_file():
        what = describe_entry(path) if path.exists() else "no such file"
        raise UserError(f"{path}: {what}; {command}")
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy stumble in many ways
        what = one_line(error)[:160]
        raise UserError(f"{path}: not a whole .npy of plain numbers ({what}); {command}") from None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path}: {found} found, {np.dtype(dtype)} {shape} expected; {command}")
    return array.view(np.ndarray)
