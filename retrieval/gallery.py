"""A gallery file: features of images with their names on disk, memory-mapped, and exact search in them.

The file is an uncompressed .npz, which `numpy.load` reads too: `paths` and `shows` (N,), `pool` and `bnneck`
(N, D) float32 or float16, L2-normalised, and `record`, JSON. Imports no torch.
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import IO

import numpy as np
from tqdm import tqdm

from datasets.files import describe_entry
from datasets.images import file_of
from datasets.types import ImageSpec
from utils import UserError, as_user_error, atomic_path

FORMAT = 1
MADE = ("checkpoint", "method", "height", "width", "flip", "range", "precision")  # what features depend on
BLOCK = 4096  # gallery rows that are copied at once
CELLS = 1 << 22  # similarities at once: in large pieces, the threads of a product seldom wait
QUERIES = 256  # queries at once
CAMERA = re.compile(r"(?:^|[/\\_\-. ])c(?:am(?:era)?)?[_-]?(\d{1,9})(?=s\d|[/\\_\-. #]|$)", re.IGNORECASE)
TIME = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(\d\d)-?(\d\d)[T_ -]?(\d\d)[-:]?(\d\d)[-:]?(\d\d)(?!\d)")


@dataclass(frozen=True)
class Record:
    """What made the features of a file; only what was made in the same way can be compared.

    checkpoint: SHA-256 of the file of weights; height, width: pixels; range: of raw values that became 8 bits
    (None: the images had 8); precision: float32, bf16 or half; rows: what each of the features stands for,
    one of images, boxes, tracklets, tracks; folder: where names that are relative begin (empty: unknown).
    """

    checkpoint: str
    method: str
    height: int
    width: int
    flip: bool
    modality: str
    precision: str = "float32"
    rows: str = "images"
    range: tuple[int, int] | None = None
    folder: str = ""

    @property
    def spec(self) -> ImageSpec:
        """The form in which the images were read."""
        return ImageSpec(self.height, self.width, self.range)


@dataclass(frozen=True)
class Gallery:
    """N features of both kinds with their names.

    paths (N,): names, each once; images (N,): an image that shows each; pool, bnneck (N, D) float32 or
    float16; shows (N,): digests of what each shows, of `embedding.digests` (empty: unknown).
    """

    paths: Sequence[str]
    images: Sequence[str]
    pool: np.ndarray
    bnneck: np.ndarray
    record: Record
    shows: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def keys(self) -> list[str]:
        """The names of all rows, from the root of the file system on."""
        return [os.path.abspath(os.path.join(self.record.folder, path)) for path in self.paths]

    def digests(self) -> list[str]:
        """What each row shows; empty where the file does not say."""
        return [str(digest) for digest in self.shows] if len(self.shows) else [""] * len(self)


# ------------------------------------------------------------------------------------------------------ files
def write_gallery(path: Path, gallery: Gallery) -> None:
    """Write a gallery file, whole or not at all, even over one whose arrays are mapped here."""
    # In this order, and with names of these lengths, features begin at multiples of 4 bytes in the file:
    # products of rows that do not take three to ten times as long.
    arrays = {"record": np.array(json.dumps({"format": FORMAT, **asdict(gallery.record)})),
              "bnneck": gallery.bnneck, "paths": np.array(gallery.paths, str),
              "shows": np.array(gallery.digests(), "U32"), "pool": gallery.pool}
    if gallery.record.rows in ("tracklets", "tracks"):
        arrays["images"] = np.array(gallery.images, str)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def merge(old: Gallery, new: Gallery) -> Gallery:
    """The rows of a gallery that a newer one does not have, by their keys, and then the newer one's.

    The names of the newer one begin where those of the older one do.
    """
    folder, known = old.record.folder or new.record.folder, set(new.keys())
    kept = [row for row, key in enumerate(old.keys()) if key not in known]

    def renamed(name: str) -> str:
        if os.path.isabs(name) or new.record.folder == folder:
            return name
        return os.path.relpath(os.path.join(new.record.folder, name), folder)

    names = ([str(mine[row]) for row in kept] + list(map(renamed, theirs))
             for mine, theirs in ((old.paths, new.paths), (old.images, new.images)))
    feats = (np.concatenate([mine[kept], theirs], dtype=mine.dtype)
             for mine, theirs in ((old.pool, new.pool), (old.bnneck, new.bnneck)))
    digests = old.digests()
    return Gallery(*names, *feats, replace(new.record, folder=folder),
                   [digests[row] for row in kept] + new.digests())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process write a gallery into a folder, where the file system has locks."""
    handle = None
    with contextlib.suppress(ImportError, OSError):  # of Windows, and of file systems without
        import fcntl
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def read_gallery(path: str | Path) -> Gallery:
    """A gallery file, memory-mapped; raises `UserError` if it is none."""
    if not os.path.isfile(path):  # to open a pipe would wait for a writer
        raise UserError(f"{path}: {describe_entry(path)}, a file that embed.py wrote expected")
    with (open(path, "rb") as file,
          as_user_error(f"{path}: not a whole gallery file of embed.py", "make it anew")):
        arrays = {member.filename.removesuffix(".npy"): map_array(path, file, member)
                  for member in zipfile.ZipFile(file).infolist()}
        content = json.loads(str(arrays["record"]))
        if content.pop("format") != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        record = Record(**{**content, "range": content.get("range") and tuple(content["range"])})
        paths, pool, bnneck = arrays["paths"], arrays["pool"], arrays["bnneck"]
        images, shows = arrays.get("images", paths), arrays.get("shows", np.full(len(paths), ""))
        names = (paths, images, shows)
        if not (all(each.shape == pool.shape[:1] and each.dtype.kind == "U" for each in names)
                and pool.ndim == 2 and pool.shape == bnneck.shape
                and {pool.dtype.name, bnneck.dtype.name} <= {"float16", "float32"}):
            raise ValueError(", ".join(f"{name} {each.dtype}{each.shape}" for name, each in arrays.items()))
    return Gallery(paths, images, pool, bnneck, record, shows)


def map_array(path: str | Path, file: IO[bytes], member: zipfile.ZipInfo) -> np.ndarray:
    """An uncompressed array within a .npz, memory-mapped; raises ValueError where it is none."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed; numpy.savez leaves it as it is")
    file.seek(member.header_offset + 26)  # there, the lengths of its name and of what else precedes it
    lengths = struct.unpack("<HH", file.read(4))
    start = member.header_offset + 30 + sum(lengths)
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or fortran or file.tell() + size != start + member.file_size:
        raise ValueError(f"{member.filename}: {dtype} of shape {shape} does not fit {member.file_size} bytes")
    return np.memmap(path, dtype, "r", file.tell(), shape) if size else np.empty(shape, dtype)


def require_same(first: Record, second: Record, what: str, others: Sequence[str] = ()) -> None:
    """Raise `UserError` unless two records agree in all that made the features, and in other fields.

    what: the two files in words.
    """
    for name in (*MADE, *others):
        pair = [str(getattr(record, name))[:16] for record in (first, second)]
        if getattr(first, name) != getattr(second, name):
            raise UserError(f"{what}: {name} {' and '.join(pair)} found, the same expected: their features "
                            "cannot be compared; make both in the same way, with one checkpoint")


# ------------------------------------------------------------------------------------------------------ names
def image_finder(gallery: Gallery, root: str | None) -> Callable[[str], str]:
    """A function from an image's name to its file; root: the folder where the images lie now.

    Below it, names keep as many of their last folders as lead to images that are there.
    """
    def below(image: str, dropped: int) -> str:
        path = PurePath(os.path.normpath(image))
        return os.path.join(root, *path.relative_to(path.anchor).parts[dropped:])

    sample = [str(image) for image in gallery.images[::-(-len(gallery) // 20)]] if root else []
    for dropped in range(max((len(PurePath(image).parts) for image in sample), default=0)):
        if any(os.path.isfile(file_of(below(image, dropped))) for image in sample):
            return lambda image: below(image, dropped)
    return lambda image: os.path.join(gallery.record.folder, image)


def camera_of(path: str) -> int:
    """The number of the camera that a name tells last, as `cam3/`, `_c3_` or `_c3s1_` do; -1: none."""
    numbers = CAMERA.findall(path)
    return int(numbers[-1]) if numbers else -1


def time_of(path: str) -> str | None:
    """The time that a name tells, as `20260131_235959` or `2026-01-31T23:59:59` do, ISO 8601; None: none."""
    numbers = TIME.findall(path)
    return "{}-{}-{}T{}:{}:{}".format(*numbers[-1]) if numbers else None


# ----------------------------------------------------------------------------------------------------- search
@dataclass(frozen=True)
class Hits:
    """Each query's first gallery rows (Q, K) int64, -1 behind the last, and similarities (Q, K) float64."""

    rows: np.ndarray
    similarities: np.ndarray


def find_nearest(query: np.ndarray, gallery: np.ndarray, top: int,
                 excluded: Sequence[tuple[np.ndarray, np.ndarray]] = (), silent: bool = True) -> Hits:
    """The `top` most similar rows of a gallery (G, D) for each query (Q, D), L2-normalised, among all rows.

    The order is that of a full stable sort: by falling similarity, computed in float64, and equal ones in
    gallery order. excluded: pairs of integers of the queries (Q,) and of the gallery (G,), as of cameras: a
    query does not see the rows that have its own; -1 is none. Raises ValueError for features that are not
    finite.
    """
    shape = len(query), min(top, len(gallery))
    hits = Hits(np.full(shape, -1), np.full(shape, -np.inf))
    firsts = range(0, len(query), QUERIES)
    total = len(gallery) * len(firsts)
    with tqdm(total=total, unit="row", unit_scale=True, leave=False, disable=silent or None) as bar:
        for some in (slice(first, first + QUERIES) for first in firsts):
            feats, best = np.asarray(query[some], np.float32), Hits(hits.rows[some], hits.similarities[some])
            for start, block in blocks(gallery, len(feats)):
                rough = feats @ block.T
                with np.errstate(invalid="ignore"):
                    finite = np.isfinite(rough.sum())
                if not finite:
                    rows = f"rows {start} to {start + len(block) - 1}"
                    raise ValueError(f"features that are not finite, among the queries or in {rows}")
                for own, theirs in excluded:
                    numbers = theirs[start:start + len(block)]
                    rough[(own[some, None] == numbers) & (numbers >= 0)] = -np.inf
                keep_nearest(best, feats, start, block, rough)
                bar.update(len(block))
    return hits


def blocks(gallery: np.ndarray, queries: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of a gallery as float32, each with its first row; what is float32 is not copied."""
    size = BLOCK if gallery.dtype != np.float32 else max(BLOCK, min(16 * BLOCK, CELLS // queries))
    for start in range(0, len(gallery), size):
        yield start, np.asarray(gallery[start:start + size], np.float32)


def keep_nearest(best: Hits, feats: np.ndarray, start: int, block: np.ndarray, rough: np.ndarray) -> None:
    """Put the rows of a block that belong there into the hits of some queries.

    rough (q, b) float32: similarities as the product of matrices rounds them, by at most D 2^-24. What may
    belong there is computed again in float64, so that neither rounding nor the size of a block decides.
    """
    margin, top = feats.shape[1] * 2.0 ** -23, best.rows.shape[1]
    floors = np.maximum(best.similarities[:, -1] - margin, -2)  # excluded rows lie below
    for query in np.flatnonzero(rough.max(1) >= floors):
        among = np.flatnonzero(rough[query] >= floors[query])
        if len(among) > top:
            kept = rough[query, among]
            among = among[kept >= np.partition(kept, -top)[-top] - margin]
        exact = [(block[part].astype(np.float64) * feats[query]).sum(1)
                 for part in np.split(among, range(BLOCK, len(among), BLOCK))]
        similarities = np.concatenate([best.similarities[query], *exact])
        order = np.argsort(-similarities, kind="stable")[:top]
        best.rows[query] = np.concatenate([best.rows[query], start + among])[order]
        best.similarities[query] = similarities[order]
