"""Features of any images: folders, lists, tracklets, boxes in larger images. Imports no torch by itself.

    net, facts = checkpoint.load_network("save_model/..._last.t")
    night = embedding.embed(net, paths, "infrared", facts["img_h"], facts["img_w"])      night.bnneck: (N, D)
"""
from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.files import IMAGE_SUFFIXES, is_system_file
from datasets.types import FEATURES, INFRARED, MODALITIES, Features, ImageSpec
from features import Extraction, Network, as_network, extract_batches, join, require_finite
from utils import UserError, explain_os_error, warn

if TYPE_CHECKING:
    from torch import nn

Rows = dict[str, list[str]]  # by name, the images whose mean feature it has
COLOURLESS = 3.0  # of 255: mean difference of an image's channels; what JPEG does to a grey one is less


# --------------------------------------------------------------------------------------------------- features
def embed(net: nn.Module | Network, paths: Sequence[str], modality: str, height: int = 288, width: int = 144,
          range: tuple[int, int] | None = None, **settings: Any) -> Features:
    """Features of image files of one modality.

    net: a network, on its device, or a function of images (B, height, width, 3) uint8 to both features (B,
    D), L2-normalised. settings: other fields of `Extraction`. Errors and warnings are those of
    `embed_batches`; raises ValueError for no known modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality: {modality!r} found, one of {', '.join(MODALITIES)} expected")
    extraction = Extraction(ImageSpec(height, width, range), **settings)
    network = as_network(net, modality, extraction)
    return join(list(embed_batches(network, list(map(str, paths)), modality, extraction)))


def embed_batches(network: Network, paths: Sequence[str], modality: str, settings: Extraction,
                  unreadable: dict[str, str] | None = None) -> Iterator[Features]:
    """Features of image files of one modality, those of a batch at a time.

    unreadable: takes the error of each file that cannot be read, which is left out then. Warns of images with
    a colour that their modality does not have. Raises `UserError` naming an image that cannot be read, or
    whose features are not finite.
    """
    odd: list[str] = []

    def watch(names: Sequence[str], images: np.ndarray) -> None:
        odd.extend(itertools.compress(names, have_colour(images) == (modality == INFRARED)))

    for features in extract_batches(network, paths, settings, modality, unreadable, watch):
        yield require_finite(features)
    if odd:
        what = "colour" if modality == INFRARED else "no colour"
        warn(f"{len(odd)} of {len(paths)} images given as {modality} have {what}, the first {odd[0]}; is "
             "--modality right?")


def have_colour(images: np.ndarray) -> np.ndarray:
    """Whether images (B, height, width, 3) uint8 have colour, (B,) bool."""
    sample = images[:, ::2, ::2]
    return (sample.max(3) - sample.min(3)).mean((1, 2)) >= COLOURLESS


def average(features: Features, rows: Rows, unreadable: Iterable[str] = ()) -> tuple[Features, list[str]]:
    """Features of those rows whose images were all read, or named as unreadable: the normalised mean.

    Also an image of each row, from the middle of those read. Rows of one image keep its features bit by bit.
    """
    places = {path: place for place, path in enumerate(features.paths)}
    left_out, chosen, names = set(unreadable), [], []
    for name, images in rows.items():
        found = [places[image] for image in images if image in places]
        if found and all(image in places or image in left_out for image in images):
            names.append(name)
            chosen.append(found)
    means = [normalised_means(getattr(features, kind), chosen) for kind in FEATURES]
    return Features(tuple(names), *means), [features.paths[found[len(found) // 2]] for found in chosen]


def normalised_means(feats: np.ndarray, chosen: Sequence[Sequence[int]]) -> np.ndarray:
    """Means of chosen rows of (N, D) unit features, of unit length again, (M, D) float32."""
    if all(len(found) == 1 for found in chosen):
        return feats[[found[0] for found in chosen]]
    means = np.stack([feats[found].mean(0, dtype=np.float64) for found in chosen])
    return (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)


# ---------------------------------------------------------------------------------------------- what to embed
def find_images(inputs: Sequence[str]) -> list[str]:
    """The image files that folders (any depth, sorted), image files and lists (.txt, one a line) name.

    Each once, however often it is named. Raises `UserError` for what is not there, and where there is no
    image.
    """
    found, others = [], []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            for folder in folders(path):
                files = [entry.path for entry in folder if not entry.is_dir()
                         and not is_system_file(entry.name)]
                found += [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
                others += [file for file in files if not file.lower().endswith(IMAGE_SUFFIXES)]
        elif path.suffix.lower() == ".txt" and path.is_file():
            found += [line for line in read_list(path) if line]
        elif path.is_file() or path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(name)
        else:
            raise UserError(f"{name}: no such file or folder; name images, folders of them, or a .txt file "
                            "with one a line")
    if others:
        warn(f"{len(others)} files that are not {', '.join(IMAGE_SUFFIXES)} left out, the first {others[0]}")
    if not found:
        raise UserError(f"{' '.join(inputs)[:200]}: no image found; "
                        f"{', '.join(IMAGE_SUFFIXES)} files expected")
    once: dict[str, str] = {}
    for path in found:
        once.setdefault(os.path.abspath(path), os.path.normpath(path))
    return list(once.values())


def folders(root: Path) -> Iterator[list[os.DirEntry]]:
    """The sorted entries of a folder, then those of each folder within, by links too; each folder once."""
    seen, waiting = set(), [str(root)]
    while waiting:
        folder = waiting.pop(0)
        if os.path.realpath(folder) in seen:  # a link to a folder above, or beside
            continue
        seen.add(os.path.realpath(folder))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(explain_os_error(error)) from None
        waiting[:0] = [entry.path for entry in entries if entry.is_dir() and not is_system_file(entry.name)]
        yield entries


def read_list(path: Path) -> list[str]:
    """The stripped lines of a text file; `UserError` if it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        return [line.strip() for line in text.splitlines()]
    except OSError as error:
        raise UserError(explain_os_error(error)) from None


def find_tracklets(inputs: Sequence[str]) -> Rows:
    """Tracklets: a folder that holds images is one, by its path; `UserError` for images beside folders."""
    rows: Rows = {}
    for image in find_images(inputs):
        rows.setdefault(os.path.dirname(image) or ".", []).append(image)
    for name in rows:
        beside = next((other for other in rows if other != name and is_within(other, name)), None)
        if beside:
            raise UserError(f"{rows[name][0]}: an image beside the tracklet {beside}; with --tracklets, each "
                            "folder that holds images is one tracklet: move it into a folder of its own")
    return rows


def is_within(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, at any depth."""
    return folder == "." and not os.path.isabs(path) or path.startswith(os.path.join(folder, ""))


def read_boxes(path: str, inputs: Sequence[str]) -> Rows:
    """Boxes of a CSV file with columns path, x, y, w, h, in pixels, perhaps track: crops, or tracks' means.

    A path begins in the given folder, in the current one, or beside the CSV file: where there is such a file
    first. A track is the boxes of one number in images of one folder. Raises `UserError` naming file and
    line.
    """
    starts = [*inputs, ".", os.path.dirname(path) or "."]
    for name in inputs:
        if not Path(name).is_dir():
            raise UserError(f"{name}: with --boxes, the folder where its paths begin expected")
    rows: Rows = {}
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            for line in reader:
                name, track = parse_box(f"--boxes {path}, line {reader.line_num}", line, starts)
                row = f"{os.path.dirname(name.rpartition('#')[0]) or '.'}#track={track}" if track else name
                rows.setdefault(row, []).append(name)
    except (OSError, csv.Error) as error:
        raise UserError(f"--boxes {path}: {explain_os_error(error)}") from None
    if not rows:
        raise UserError(f"--boxes {path}: no box found; a line path,x,y,w,h or path,x,y,w,h,track and the "
                        "boxes below it expected")
    return rows


def parse_box(where: str, line: Mapping[str, Any], starts: Sequence[str]) -> tuple[str, str]:
    """A box as `FILE#xywh=x,y,w,h`, and its track, which may be empty; `UserError` where it is none."""
    try:
        x, y, w, h = (round(float(line[name])) for name in "xywh")
        path, track = line["path"].strip(), (line.get("track") or "").strip()
        if not path or w < 1 or h < 1 or max(map(abs, (x, y, w, h))) > 10 ** 8:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        found = ",".join(f"{name}={str(value)[:30]}" for name, value in line.items())
        raise UserError(f"{where}: {found[:160]} found; the columns path, x, y, w, h (and perhaps track) "
                        "with a path and numbers of pixels, w and h at least 1, expected") from None
    places = [os.path.normpath(os.path.join(start, path)) for start in starts]
    return f"{next(filter(os.path.isfile, places), places[0])}#xywh={x},{y},{w},{h}", track
