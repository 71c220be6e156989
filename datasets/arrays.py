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


# ------------------------------------------------------------------------------------- the images of a split
def fingerprint(split: TrainSplit, root: str | Path, folder: str | Path | None = None) -> str:
    """SHA-256 over modality, relative path, size, checksum and pid of every training image.

    Checksums come from the manifest in `folder` (default: `root`) if arrays were made of images of these
    names and sizes; otherwise, 12 KiB of each file are read.
    """
    lines = read_manifest(Path(folder or root) / MANIFEST).get("images", {})
    if without_checksums(lines) != list_images(split, root):
        lines = list_images(split, root, checksums=True)
    digest = hashlib.sha256()
    for side in split.sides:
        for line, pid in zip(lines[side.modality], side.pids):
            digest.update(f"{side.modality} {line} {pid}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def list_images(split: TrainSplit, root: str | Path, checksums: bool = False) -> Listing:
    """'relative/path bytes' of every image, or 'relative/path bytes-checksum'."""
    return {side.modality: [f"{Path(path).relative_to(root).as_posix()} {os.stat(path).st_size}"
                            + (f"-{checksum(path)}" if checksums else "") for path in side.paths]
            for side in split.sides}


def without_checksums(lines: Listing) -> Listing:
    """The lines of images without checksums, from those with them."""
    return {modality: [line.rpartition("-")[0] for line in side] for modality, side in lines.items()}


def checksum(path: str) -> str:
    """The CRC-32 of 4 KiB of a file's beginning, middle and end, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            length, crc = os.fstat(file.fileno()).st_size, 0
            for place in (0, length // 2, max(0, length - 4096)):
                file.seek(place)
                crc = zlib.crc32(file.read(4096), crc)
    except OSError as error:
        raise not_read(path, error) from None
    return f"{crc:08x}"


# ----------------------------------------------------------------------------------------------- the manifest
def settings(spec: ImageSpec) -> dict[str, Any]:
    """What arrays have in common: the format, the size in pixels and the filter."""
    return {"format": FORMAT, "height": spec.height, "width": spec.width, "filter": FILTER}


def manifest(split: TrainSplit, root: str | Path, spec: ImageSpec) -> dict[str, Any]:
    """What is recorded beside the arrays: settings, image counts, and the files that they are of."""
    images = list_images(split, root, checksums=True)
    return {**settings(spec), "count": {modality: len(lines) for modality, lines in images.items()},
            "images": images}


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest; empty where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def strays(split: TrainSplit, folder: Path) -> list[Path]:
    """The arrays in a folder without their manifest: other code's, or of a pre-processing cut short."""
    paths = [folder / f"{name}_img.npy" for name in split.arrays.names.values()]
    return [] if (folder / MANIFEST).is_file() else [path for path in paths if path.exists()]


# ------------------------------------------------------------------------------------------------- the arrays
def open_arrays(split: TrainSplit, root: str | Path, spec: ImageSpec,
                folder: str | Path | None = None) -> dict[str, np.ndarray] | None:
    """Memory-map the pixels (N, height, width, 3) of both modalities; None where there are no arrays.

    Raises `UserError` naming the file, and the command that makes it anew, unless they were made of images of
    these names and sizes, with this spec; also for arrays, or a folder of them, without manifest.
    """
    if split.arrays is None:
        return None
    path = Path(folder or root) / MANIFEST
    words = ["--data-path", str(root), *(["--arrays", str(folder)] if folder else [])]
    command = (f"run: python {split.arrays.script} {shlex.join(words)} "
               f"--img_w {spec.width} --img_h {spec.height}")
    if path.is_file():
        fault = outdated(path, split, root, spec)
    elif found := strays(split, path.parent) or ([f"--arrays {folder}"] if folder else []):
        fault = f"{found[0]}: no {MANIFEST} with it, which says what arrays were made from"
    else:
        return None
    if fault:
        raise UserError(f"{fault}; {command}")
    arrays = {}
    for modality, name in split.arrays.names.items():
        labels, stem = split.labels(modality), path.with_name(name)
        arrays[modality] = load_npy(Path(f"{stem}_img.npy"), (len(labels), spec.height, spec.width, 3),
                                    np.uint8, command)
        # Other code of this field writes arrays of the same names.
        if not np.array_equal(load_npy(Path(f"{stem}_label.npy"), labels.shape, np.int64, command), labels):
            raise UserError(f"{stem}_label.npy: labels found that are not those of the lists; {command}")
    return arrays


def outdated(path: Path, split: TrainSplit, root: str | Path, spec: ImageSpec) -> str:
    """What of a manifest does not fit these images, by names and sizes, or this spec; "" if all does."""
    found = read_manifest(path)
    for name, now in settings(spec).items():
        if found.get(name) != now:
            return f"{path}: arrays of {name} {found.get(name)} found, {now} expected"
    made_from = without_checksums(found.get("images", {}))
    for modality, now in list_images(split, root).items():
        then = made_from.get(modality, [])
        if then != now:
            example = min(set(then) ^ set(now), default="their order ").rpartition(" ")[0]
            return (f"{path}: the arrays were made from {len(then)} {modality} images, the training lists "
                    f"now give {len(now)} that are not the same ({example} differs)")
    return ""


def load_npy(path: Path, shape: tuple[int, ...], dtype: type, command: str) -> np.ndarray:
    """Memory-map a .npy of a known shape and dtype (never a pickled one), copied on writing.

    Raises `UserError` naming the file, what it holds and the command that makes it anew.
    """
    try:
        if not path.is_file():
            raise ValueError(describe_entry(path))
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
            raise ValueError(f"{array.dtype} {array.shape} found")
    except Exception as error:  # a damaged header makes NumPy stumble in many ways
        raise UserError(f"{path}: not the expected array of {np.dtype(dtype)} {shape} "
                        f"({one_line(error)[:160]}); {command}") from None
    return array.view(np.ndarray)
