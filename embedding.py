"""Features of any images, and what a row of a gallery is: an image, a tracklet, boxes in larger images.

    net, facts = checkpoint.load_network("save_model/..._last.t")
    night = embedding.embed(net, paths, "infrared", facts["img_h"], facts["img_w"])      night.bnneck: (N, D)

Imports no torch by itself.
"""
from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.files import IMAGE_SUFFIXES, is_system_file, read_text
from datasets.images import PART, by_file, file_of, size_of
from datasets.types import FEATURES, INFRARED, MODALITIES, VISIBLE, Features, ImageSpec
from features import Extraction, Network, as_network, extract_batches, join, require_finite, unit_length
from retrieval.gallery import Gallery, Record
from utils import UserError, sha256, warn

if TYPE_CHECKING:
    from torch import nn

ALIASES = {"rgb": VISIBLE, "colour": VISIBLE, "color": VISIBLE, "ir": INFRARED, "nir": INFRARED,
           "thermal": INFRARED}  # of modalities, on the command line
Rows = dict[str, list[str]]  # by name, the images whose mean feature it has: FILE, or FILE#xywh=x,y,w,h
COLOURLESS = 3.0  # of 255: mean difference of an image's channels; what JPEG does to a grey one is less
LOOKED_AT = 100  # images whose aspect is looked at


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
    """Features of image files of one modality, those of a batch at a time; warns of images with a colour that
    their modality does not have.

    unreadable: takes the error of each file that cannot be read, which is left out then. Raises `UserError`
    naming an image that cannot be read, or whose features are not finite.
    """
    read: list[str] = []
    coloured: list[bool] = []

    def watched(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coloured.extend(have_colour(images))
        return network(images)

    for features in extract_batches(watched, paths, settings, modality, unreadable):
        read.extend(features.paths)
        yield require_finite(features)
    odd = [path for path, colour in zip(read, coloured) if colour == (modality == INFRARED)]
    if odd:
        what = "colour" if modality == INFRARED else "no colour"
        warn(f"{len(odd)} of {len(paths)} images given as {modality} have {what}, the first {odd[0]}; is "
             "--modality right?")


def have_colour(images: np.ndarray) -> np.ndarray:
    """Whether images (B, height, width, 3) uint8 have colour, (B,) bool."""
    sample = images[:, ::2, ::2]
    return (sample.max(3) - sample.min(3)).mean((1, 2)) >= COLOURLESS


def as_gallery(features: Features, rows: Rows, shown: Mapping[str, str], record: Record,
               dtype: type[np.floating] = np.float32) -> Gallery:
    """The rows of which images have been embedded: the normalised mean of these, and one from their middle.

    shown: what each row shows, of `digests`.
    """
    places = {path: place for place, path in enumerate(features.paths)}
    chosen = {name: [places[image] for image in images if image in places] for name, images in rows.items()}
    chosen = {name: found for name, found in chosen.items() if found}
    pool, bnneck = (normalised_means(getattr(features, kind), list(chosen.values())).astype(dtype)
                    for kind in FEATURES)
    images = [features.paths[found[len(found) // 2]] for found in chosen.values()]
    return Gallery(list(chosen), images, pool, bnneck, record, [shown[name] for name in chosen])


def normalised_means(feats: np.ndarray, chosen: Sequence[Sequence[int]]) -> np.ndarray:
    """Means of chosen rows of (N, D) unit features, of unit length again, (M, D) float32; single ones as they
    are, bit by bit, where there are no others.
    """
    if all(len(found) == 1 for found in chosen):
        return feats[[found[0] for found in chosen]]
    means = np.stack([feats[found].mean(0, dtype=np.float64) for found in chosen])
    return unit_length(means).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- rows
def images_of(rows: Rows) -> list[str]:
    """Every image of some rows once, boxes of one frame one after the other."""
    return list(itertools.chain.from_iterable(by_file(itertools.chain.from_iterable(rows.values()))))


def digests(rows: Rows, workers: int = 4) -> dict[str, str]:
    """What each row shows, by its name, in 32 characters: 16 of its first image, 16 of all of them.

    They are of the contents of files, and of boxes in them: names, folders and times do not matter.
    """
    files = list(dict.fromkeys(map(file_of, images_of(rows))))
    with ThreadPoolExecutor(workers or 1) as pool:
        contents = dict(zip(files, pool.map(digest_of_file, files)))

    def digest(images: Sequence[str]) -> str:
        shown = "\n".join(contents[file_of(image)] + image[len(file_of(image)):] for image in images)
        return hashlib.sha256(shown.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    return {name: digest(images[:1]) + digest(images) for name, images in rows.items()}


def digest_of_file(path: str) -> str:
    """The SHA-256 of a file; empty where it cannot be read, as reading the image will say."""
    try:
        return sha256(Path(path)) if os.path.isfile(path) else ""
    except OSError:
        return ""


def warn_of_shapes(images: Sequence[str]) -> None:
    """Warn where most images are wider than tall, as no person is, and of boxes that are cut at a border."""
    sample = images[::len(images) // LOOKED_AT + 1]
    wide = list(filter(is_wide, sample))
    if 2 * len(wide) > len(sample):
        warn(f"most images are wider than tall, as {wide[0]}; crops of one person each are expected: cut "
             "them out with a detector of your own, or give its boxes with --boxes")
    boxes = [image for image in images if PART.search(image)]
    sizes = {frame: size_of(frame) for frame in set(map(file_of, boxes))}
    cut = [box for box in boxes if is_cut(box, sizes[file_of(box)])]
    if cut:
        warn(f"{len(cut)} boxes lie partly outside their images, the first {cut[0]}; "
             "they are cut at the border")


def is_wide(image: str) -> bool:
    """Whether an image, or a box, is wider than tall; False where that cannot be read."""
    part = PART.search(image)
    size = tuple(map(int, part.groups()[2:])) if part else size_of(image)
    return size is not None and size[0] > size[1]


def is_cut(box: str, size: tuple[int, int] | None) -> bool:
    """Whether a box lies partly, not wholly, outside its image of a size in pixels (width, height)."""
    x, y, w, h = map(int, PART.search(box).groups())
    width, height = size or (np.inf, np.inf)  # of what cannot be read, which will be said
    return x < width and y < height and x + w > 0 and y + h > 0 and (
        x < 0 or y < 0 or x + w > width or y + h > height)


# ---------------------------------------------------------------------------------------------- what to embed
def modality(text: str) -> str:
    """An argparse type: a modality, by its own name or by another that the field has for it."""
    return ALIASES.get(text.lower(), text.lower())


def find_images(inputs: Sequence[str]) -> list[str]:
    """The image files that folders (any depth, sorted), image files and lists (.txt, one a line) name.

    Each once, however often it is named. Raises `UserError` for what is not there, and where there is no
    image.
    """
    found, others, system = [], [], []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            for entry in walk(path):
                kind = (system if is_system_file(entry.name) else
                        found if entry.name.lower().endswith(IMAGE_SUFFIXES) else others)
                kind.append(entry.path)
        elif path.suffix.lower() == ".txt" and path.is_file():
            found += filter(None, map(str.strip, read_text(path, "surrogateescape").splitlines()))
        elif path.exists() or path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(name)
        else:
            raise UserError(f"{name}: no such file or folder; name images, folders of them, or a .txt file "
                            "with one a line")
    for what, paths in ((f"files that are not {', '.join(IMAGE_SUFFIXES)}", others),
                        ("hidden and system files and folders", system)):
        if paths:
            warn(f"{len(paths)} {what} left out, the first {paths[0]}")
    if not found:
        raise UserError(f"{' '.join(inputs)[:200] or 'INPUT'}: no image found; folders of "
                        f"{', '.join(IMAGE_SUFFIXES)} files, such files, or lists of them expected")
    once: dict[str, str] = {}
    for path in found:
        once.setdefault(os.path.abspath(path), os.path.normpath(path))
    return list(once.values())


def walk(root: Path) -> Iterator[os.DirEntry]:
    """What lies in a folder and in those within, by links too, each folder once, but system folders."""
    seen, waiting = set(), [str(root)]
    while waiting:
        folder = waiting.pop(0)
        if os.path.realpath(folder) in seen:  # a link to a folder above, or beside
            continue
        seen.add(os.path.realpath(folder))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        inner = [entry.path for entry in entries if entry.is_dir() and not is_system_file(entry.name)]
        waiting[:0] = inner
        yield from (entry for entry in entries if entry.path not in inner)


def find_tracklets(inputs: Sequence[str]) -> Rows:
    """Tracklets: a folder that holds images is one, by its path; `UserError` for images beside folders."""
    rows: Rows = {}
    for image in find_images(inputs):
        rows.setdefault(os.path.dirname(image) or ".", []).append(image)
    for name in rows:
        for above in map(str, Path(name).parents):
            if above in rows:
                raise UserError(f"{rows[above][0]}: an image beside the tracklet {name}; with --tracklets, "
                                "each folder that holds images is one tracklet: move it into one of its own")
    return rows


def read_boxes(path: str, inputs: Sequence[str]) -> Rows:
    """Boxes of a CSV file with columns path, x, y, w, h, in pixels, perhaps track: crops, or tracks' means.

    Columns have any order and case. A path begins in the given folder, in the current one, or beside the CSV
    file: where there is such a file first. A track is the boxes of one number in images of one folder; a box
    of no track stays single. Raises `UserError` naming file and line.
    """
    starts = [*inputs, ".", os.path.dirname(path) or "."]
    reader = csv.DictReader(io.StringIO(read_text(Path(path), "surrogateescape")), skipinitialspace=True)
    reader.fieldnames = [str(name).strip().lower() for name in reader.fieldnames or ()]
    boxes = [parse_box(f"--boxes {path}, line {reader.line_num}", line, starts) for line in reader]
    if not boxes:
        raise UserError(f"--boxes {path}: no box found; a line path,x,y,w,h or path,x,y,w,h,track and the "
                        "boxes below it expected")
    # A track has one box in a frame: where 0 has two, the tracker means none by it.
    counts = Counter((file_of(name), track) for name, track in boxes)
    none = ("", "0") if any(track == "0" and count > 1 for (_, track), count in counts.items()) else ("",)
    rows: Rows = {}
    for name, track in boxes:
        folder = os.path.dirname(file_of(name)) or "."
        rows.setdefault(name if track in none else f"{folder}#track={track}", []).append(name)
    return rows


def parse_box(where: str, line: Mapping[str, Any], starts: Sequence[str]) -> tuple[str, str]:
    """A box as `FILE#xywh=x,y,w,h`, and its track, empty for none; `UserError` where it is none."""
    try:
        x, y, w, h = (round(float(line[name])) for name in "xywh")
        path, track = line["path"].strip(), (line.get("track") or "").strip()
        if not path or w < 1 or h < 1 or max(map(abs, (x, y, w, h))) > 10 ** 8:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        found = ",".join(f"{name}={str(value)[:30]}" for name, value in line.items())
        raise UserError(f"{where}: {found[:160]} found; the columns path, x, y, w, h (and perhaps track) "
                        "with a path and numbers of pixels, w and h at least 1, expected") from None
    number = re.fullmatch(r"(-?)0*(\d+)(\.0*)?", track)
    if number:
        track = "" if number[1] else number[2]
    places = [os.path.normpath(os.path.join(start, path)) for start in starts]
    return f"{next(filter(os.path.isfile, places), places[0])}#xywh={x},{y},{w},{h}", track
