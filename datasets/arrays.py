"""The pre-processed training arrays on disk: their names, their manifest, and the checks before they are used. No torch."""
from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from data_manager import TrainSplit
from datasets.images import FILTER
from utils import UserError, one_line

ARRAYS = {"visible": "train_rgb_resized", "infrared": "train_ir_resized"}
MANIFEST = "train_resized_img.json"
FORMAT = 1


def manifest(split: TrainSplit, root: str | Path, height: int, width: int) -> dict[str, Any]:
    """What is recorded beside the arrays: size in pixels, filter, image counts and the files they were made from."""
    images = split.listing(root)
    return {"format": FORMAT, "height": height, "width": width, "filter": FILTER,
            "count": {modality: len(lines) for modality, lines in images.items()}, "images": images}


def present(root: str | Path, height: int, width: int) -> bool:
    """Whether a data set has pre-processed arrays; raises `UserError` for arrays without the manifest."""
    if (Path(root) / MANIFEST).exists():
        return True
    strays = [f"{name}_img.npy" for name in ARRAYS.values() if (Path(root) / f"{name}_img.npy").exists()]
    if strays:
        raise UserError(f"{Path(root) / strays[0]}: found without {MANIFEST}, which says what it was made from; "
                        f"{renew(root, height, width)}")
    return False


def renew(root: str | Path, height: int, width: int) -> str:
    """The command that makes the arrays anew."""
    return f"run: python pre_process_sysu.py --data-path {shlex.quote(str(root))} --img_w {width} --img_h {height}"


def open_arrays(split: TrainSplit, root: str, height: int, width: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Memory-map the arrays that pre_process_sysu.py wrote, after checking them against images and size."""
    path, command = Path(root) / MANIFEST, renew(root, height, width)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        size, made_from = (manifest["height"], manifest["width"]), {**manifest["images"]}
        checks = (("format", manifest["format"], FORMAT), ("filter", manifest["filter"], FILTER),
                  ("height x width", "{} x {}".format(*size), f"{height} x {width}"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the record of pre-processing ({type(error).__name__}: {error}); {command}") from None
    for what, found, expected in checks:
        if found != expected:
            raise UserError(f"{path}: arrays of {what} {found} found, {expected} expected; {command}")
    for modality, now in split.listing(root).items():
        then = made_from.get(modality)
        if then != now:
            raise UserError(f"{path}: {difference(then, now, modality)}; {command}")
    return {side.modality: open_array(Path(root), side.modality, split.labels(side.modality), height, width, command)
            for side in (split.visible, split.infrared)}


def difference(then: object, now: list[str], modality: str) -> str:
    """Say in words how the images differ from those that an array was made from."""
    then = then if isinstance(then, list) else []
    changed = sorted(set(map(str, then)) ^ set(now))
    example = f" ({changed[0].rpartition(' ')[0]} differs)" if changed else ""
    return (f"the arrays were made from {len(then)} {modality} images, the training lists now give {len(now)} that are not "
            f"the same{example}")


def open_array(root: Path, modality: str, labels: np.ndarray, height: int, width: int,
               command: str) -> tuple[np.ndarray, np.ndarray]:
    """Memory-map one pair of arrays; any but a whole array of the expected shape and dtype is a `UserError`."""
    pixels = load_npy(root / f"{ARRAYS[modality]}_img.npy", (len(labels), height, width, 3), np.uint8, command)
    stored = load_npy(root / f"{ARRAYS[modality]}_label.npy", (len(labels),), np.int64, command)
    if not np.array_equal(stored, labels):
        raise UserError(f"{root / f'{ARRAYS[modality]}_label.npy'}: labels found that are not those of the lists; {command}")
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
        raise UserError(f"{path}: not a whole .npy of plain numbers ({one_line(error)[:160]}); {command}") from None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path}: {found} found, {np.dtype(dtype)} {shape} expected; {command}")
    return array.view(np.ndarray)
