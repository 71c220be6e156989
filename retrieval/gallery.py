"""A gallery file: features of images with their names on disk, memory-mapped, and exact search in them.

The file is an uncompressed .npz, which `numpy.load` reads too: `paths` (N,), `pool` and `bnneck` (N, D)
float32 or float16, L2-normalised, and `record`, JSON. Imports no torch.
"""
from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from results import FEATURES
from datasets.types import ImageSpec
from utils import UserError, atomic_path, one_line

FORMAT = 1
ALIGNMENT = 64  # bytes: arrays begin at multiples of it in the file, as NumPy wants them in memory
BLOCK = 4096  # gallery rows that are copied at once
CELLS = 1 << 22  # similarities at once: in large pieces, the threads of a product seldom wait
QUERIES = 256  # queries at once
CAMERA = re.compile(r"(?:^|[/\\_\-. ])c(?:am(?:era)?)?[_-]?(\d{1,9})(?=s\d|[/\\_\-. #]|$)", re.IGNORECASE)
TIME = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(\d\d)-?(\d\d)[T_ -]?(\d\d)[-:]?(\d\d)[-:]?(\d\d)(?!\d)")


@dataclass(frozen=True)
class Record:
    """What made the features of a file; only what was made in the same way can be compared.

    checkpoint: SHA-256 of the file of weights; height, width: pixels; range: of raw values that became 8 bits
    (None: the images had 8); precision: float32, bf16, half or int8; rows: what each of the features stands
    for, one of images, boxes, tracklets, tracks.
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

    @property
    def spec(self) -> ImageSpec:
        """The form in which the images were read."""
        return ImageSpec(self.height, self.width, self.range)


@dataclass(frozen=True)
class Gallery:
    """N features of both kinds with their names.

    paths (N,): names, each once; images (N,): an image that shows each; pool, bnneck (N, D) float32 or
    float16.
    """

    paths: Sequence[str]
    images: Sequence[str]
    pool: np.ndarray
    bnneck: np.ndarray
    record: Record

    def __len__(self) -> int:
        return len(self.paths)


# ------------------------------------------------------------------------------------------------------ files
def write_gallery(path: Path, parts: Sequence[Gallery]) -> None:
    """Write galleries of one record into one file, whole or not at all, even over a mapped one of theirs."""
    arrays: dict[str, list[np.ndarray]] = {name: [getattr(part, name) for part in parts] for name in FEATURES}
    arrays["paths"] = [np.array(part.paths, str) for part in parts]
    if parts[0].record.rows in ("tracklets", "tracks"):
        arrays["images"] = [np.array(part.images, str) for part in parts]
    arrays["record"] = [np.array(json.dumps({"format": FORMAT, **asdict(parts[0].record)}))]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, pieces in arrays.items():
                write_array(archive, file, name, pieces)


def write_array(archive: zipfile.ZipFile, file: IO[bytes], name: str, pieces: Sequence[np.ndarray]) -> None:
    """Write arrays one after the other as one member, a block of rows at a time, from an aligned place on."""
    dtype = max((piece.dtype for piece in pieces), key=lambda dtype: dtype.itemsize)
    shape = (sum(map(len, pieces)), *pieces[0].shape[1:]) if pieces[0].ndim else ()
    head = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                 "shape": shape}).encode("ascii")
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        prefix = np.lib.format.magic(1, 0)
        begun = file.tell() + len(prefix) + 2 + len(head) + 1
        head += b" " * (-begun % ALIGNMENT) + b"\n"
        member.write(prefix + len(head).to_bytes(2, "little") + head)
        for piece in pieces:
            for start in range(0, len(piece), BLOCK) if piece.ndim else (...,):
                rows = piece[start:start + BLOCK] if piece.ndim else piece
                member.write(np.ascontiguousarray(rows, dtype).tobytes())


def read_gallery(path: str | Path) -> Gallery:
    """A gallery file, memory-mapped; raises `UserError` if it is none."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            arrays = {name.removesuffix(".npy"): map_array(path, file, archive.getinfo(name))
                      for name in archive.namelist()}
        record = read_record(str(arrays["record"]))
        paths, pool, bnneck = arrays["paths"], arrays["pool"], arrays["bnneck"]
        images = arrays.get("images", paths)
        same_length = paths.shape == images.shape == pool.shape[:1]
        names, floats = {paths.dtype.kind, images.dtype.kind}, {pool.dtype.name, bnneck.dtype.name}
        if not (same_length and pool.ndim == 2 and pool.shape == bnneck.shape and names == {"U"}
                and floats <= {"float16", "float32"}):
            found = [f"{name} {array.dtype}{array.shape}" for name, array in arrays.items()]
            raise ValueError(", ".join(found))
        return Gallery(paths, images, pool, bnneck, record)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a file that embed.py wrote") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder found, a file that embed.py wrote expected; make one of it with "
                        "embed.py") from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path}: not a whole gallery file of embed.py ({type(error).__name__}: "
                        f"{one_line(error)[:160]}); make it anew") from None


def map_array(path: str | Path, file: IO[bytes], member: zipfile.ZipInfo) -> np.ndarray:
    """An uncompressed array within a .npz, memory-mapped; raises ValueError where it is none."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"{member.filename} is compressed; numpy.savez leaves it as it is")
    file.seek(member.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\3\4":
        raise ValueError(f"{member.filename} is not where the list of contents says")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = member.header_offset + 30 + name_length + extra_length
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or fortran or file.tell() + size != start + member.file_size:
        raise ValueError(f"{member.filename}: {dtype} of shape {shape} does not fit {member.file_size} bytes")
    if size == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", file.tell(), shape)


def read_record(text: str) -> Record:
    """The record in a gallery file; raises ValueError, KeyError or TypeError if it is none."""
    content: Mapping[str, Any] = json.loads(text)
    if content["format"] != FORMAT:
        raise ValueError(f"format {str(content['format'])[:20]} found, {FORMAT} expected")
    record = Record(**{name: value for name, value in content.items() if name != "format"})
    return Record(**{**asdict(record), "range": record.range and tuple(record.range)})


def require_same(first: Record, second: Record, names: Sequence[str], what: str) -> None:
    """Raise `UserError` unless two records agree in these fields; what: the two files in words."""
    for name in names:
        found, expected = getattr(second, name), getattr(first, name)
        if found != expected:
            raise UserError(f"{what}: {name} {str(expected)[:16]} and {str(found)[:16]} found, the same "
                            "expected: their features cannot be compared; embed both in the same way")


# ------------------------------------------------------------------------------------------------------ names
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


def find_nearest(query: np.ndarray, gallery: np.ndarray, top: int, q_camids: np.ndarray | None = None,
                 g_camids: np.ndarray | None = None, silent: bool = True) -> Hits:
    """The `top` most similar rows of a gallery (G, D) for each query (Q, D), L2-normalised, among all rows.

    The order is that of a full stable sort: by falling similarity, computed in float64, and equal ones in
    gallery order. Rows of the query's camera are left out where cameras (Q,), (G,) are given; -1 is none.

    Raises ValueError for NaN or infinite features.
    """
    shape = len(query), min(top, len(gallery))
    hits = Hits(np.full(shape, -1), np.full(shape, -np.inf))
    firsts = range(0, len(query), QUERIES)
    total = len(gallery) * len(firsts)
    with tqdm(total=total, unit="row", unit_scale=True, leave=False, disable=silent or None) as bar:
        for first in firsts:
            some = slice(first, first + QUERIES)
            feats = np.asarray(query[some], np.float32)
            for start, block in blocks(gallery, len(feats)):
                similarity = feats @ block.T
                with np.errstate(invalid="ignore"):
                    finite = np.isfinite(similarity.sum())
                if not finite:
                    rows = f"rows {start} to {start + len(block) - 1}"
                    raise ValueError(f"features that are not finite, among the queries or in {rows}")
                if q_camids is not None:
                    cameras = g_camids[start:start + len(block)]
                    similarity[(q_camids[some, None] == cameras) & (cameras >= 0)] = -np.inf
                merge(hits, first, feats, start, block, similarity)
                bar.update(len(block))
    return hits


def blocks(gallery: np.ndarray, queries: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of a gallery as float32, each with its first row; what is float32 is not copied."""
    size = BLOCK if gallery.dtype != np.float32 else max(BLOCK, min(16 * BLOCK, CELLS // queries))
    for start in range(0, len(gallery), size):
        yield start, np.asarray(gallery[start:start + size], np.float32)


def merge(hits: Hits, first: int, feats: np.ndarray, start: int, block: np.ndarray,
          rough: np.ndarray) -> None:
    """Put the rows of a block that belong there into the hits of the queries from `first` on.

    rough (q, b) float32: similarities as the matrix product rounds them, by at most D 2^-24. Those that may
    belong there are computed again, so that neither rounding nor the size of blocks decides.
    """
    margin = feats.shape[1] * 2.0 ** -23
    top = hits.rows.shape[1]
    floors = np.maximum(hits.similarities[first:first + len(feats), -1] - margin, -2)
    for index in np.flatnonzero(rough.max(1) >= floors):
        among = np.flatnonzero(rough[index] >= floors[index])
        if len(among) > top:
            kept = rough[index, among]
            among = among[kept >= np.partition(kept, -top)[-top] - margin]
        parts = [among[start:start + BLOCK] for start in range(0, len(among), BLOCK)]
        exact = np.concatenate([(block[part].astype(np.float64) * feats[index]).sum(1) for part in parts])
        row = first + index
        similarities = np.concatenate([hits.similarities[row], exact])
        order = np.argsort(-similarities, kind="stable")[:top]
        hits.rows[row] = np.concatenate([hits.rows[row], start + among])[order]
        hits.similarities[row] = similarities[order]
