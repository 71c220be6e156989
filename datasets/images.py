"""One way to turn an image file into pixels, for pre-processing, training, testing and checking alike."""
from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from tqdm import tqdm

from datasets.files import describe_entry, not_read
from datasets.types import ImageSpec
from utils import UserError, one_line

T, R = TypeVar("T"), TypeVar("R")
FILTER = "LANCZOS"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # fewer decoders also mean fewer to trust
PART = re.compile(r"#xywh=(-?\d{1,9}),(-?\d{1,9}),(\d{1,9}),(\d{1,9})$")  # of an image: a W3C media fragment
PNG, PIXEL_CHUNKS = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"IDAT", b"IEND")
ORIENTATION = 0x0112  # tag of EXIF, whose values from 2 on say what turns an image upright
UPRIGHT = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
           Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
           Image.Transpose.ROTATE_90)


class TooManyBits(UserError):
    """An image whose raw values, from `low` to `high`, do not say which of them are black and white."""

    def __init__(self, message: str, low: int, high: int) -> None:
        super().__init__(message)
        self.low, self.high = low, high


# -------------------------------------------------------------------------------------------------- one image
def read_image(path: str | Path, spec: ImageSpec) -> np.ndarray:
    """Decode an image file and resize it (Pillow LANCZOS); returns (height, width, 3) uint8.

    `FILE#xywh=x,y,w,h` is a part of the upright image, in pixels from its upper left corner, as far as it
    lies within. Raises `UserError` naming the file that cannot be decoded, and for a part that lies outside.
    """
    (found,) = read_parts([str(path)], spec.range, partial(resized, spec=spec))
    if isinstance(found, UserError):
        raise found
    return found


def resized(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """An image in the size of a spec, (height, width, 3) uint8."""
    return np.array(image.resize((spec.width, spec.height), Image.Resampling[FILTER]))


def read_parts(paths: Sequence[str], limits: tuple[int, int] | None,
               finish: Callable[[Image.Image], R]) -> list[R | UserError]:
    """What `finish` makes of each of some parts of one file, which is decoded once; or the error of each."""
    found: list[R | UserError] = []
    try:
        image = decode(file_of(paths[0]), limits)
    except UserError as error:
        return [error] * len(paths)
    for path in paths:
        try:
            found.append(finish(part_of(image, path)))
        except UserError as error:
            found.append(error)
    return found


def part_of(image: Image.Image, path: str) -> Image.Image:
    """The part of an image that a path names, as far as it lies within; `UserError` where nothing does."""
    if not (part := PART.search(path)):
        return image
    x, y, w, h = map(int, part.groups())
    left, upper, right, lower = max(x, 0), max(y, 0), min(x + w, image.width), min(y + h, image.height)
    if left >= right or upper >= lower:
        raise UserError(f"{path}: nothing of this box lies within the image of {image.width} x "
                        f"{image.height} pixels; mend the box")
    return image.crop((left, upper, right, lower))


def file_of(path: str) -> str:
    """The file of an image, or of a part of one."""
    return PART.sub("", path)


def by_file(images: Iterable[str]) -> list[list[str]]:
    """Images, and parts of images, each once, those of one file together."""
    files: dict[str, list[str]] = {}
    for image in dict.fromkeys(images):
        files.setdefault(file_of(image), []).append(image)
    return list(files.values())


def size_of(path: str) -> tuple[int, int] | None:
    """Width and height of an upright image in pixels, from the head of its file; None where there is none."""
    if not os.path.isfile(path):
        return None
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size if orientation(image) < 5 else image.size[::-1]
    except Exception:  # reading the pixels will say what is wrong with it
        return None


def decode(path: str | Path, limits: tuple[int, int] | None) -> Image.Image:
    """An image file upright, as its EXIF says, and in RGB, whatever its metadata is.

    Palette, greyscale and CMYK images convert as Pillow does; an alpha channel is dropped. limits: see
    `ImageSpec.range`; it is never taken from an image: each would have a scale of its own. Raises `UserError`
    for a file that is not whole, or has more than 8 bits a channel and no limits. It is called damaged only
    where it was read: a drive's error, or a lack of memory, says nothing of it.
    """
    for source in (lambda: path, lambda: io.BytesIO(without_metadata(path))):
        try:
            if not os.path.isfile(path):  # to open a pipe would wait for a writer
                raise UserError(f"{path}: {describe_entry(path)}, an image file expected; restore it, or "
                                "leave it out")
            return decode_whole(path, source(), limits)
        except UserError:
            raise
        except (MemoryError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: too large for the free memory ({one_line(error) or 'none left'}); use "
                            "a smaller copy of the image, or fewer --workers") from None
        except Exception as error:  # a damaged file makes Pillow's decoders stumble in many ways
            if isinstance(error, OSError) and error.errno is not None:  # not Pillow's own, without a number
                raise not_read(path, error) from None
            what = one_line(error)
            if isinstance(error, UnidentifiedImageError):
                what = f"{', '.join(FORMATS)} expected, {describe_bytes(path)} found"
    raise UserError(f"{path}: cannot be decoded as an image ({what}); remove or replace the file")


def decode_whole(path: str | Path, source: str | Path | BinaryIO,
                 limits: tuple[int, int] | None) -> Image.Image:
    """As `decode`, from the file or from what is left of it; raises whatever Pillow does."""
    with Image.open(source, formats=FORMATS) as image:
        deep = has_more_than_8_bits(image)
        image.info.pop("transparency", None)  # dropped like an alpha channel
        image.load()
        turn = orientation(image)
        pixels = reduce_to_8_bits(image, path, limits) if deep else image
        return (pixels.transpose(UPRIGHT[turn - 2]) if turn > 1 else pixels).convert("RGB")


def orientation(image: Image.Image) -> int:
    """How an image lies, 1 to 8, by its EXIF; 1 where that is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of whatever damaged EXIF makes Pillow stumble over
        return 1
    return found if found in range(1, 9) else 1


def without_metadata(path: str | Path) -> bytes:
    """A file as it is; of a PNG, the chunks that hold its pixels, and its EXIF where that is whole."""
    data = Path(path).read_bytes()
    if not data.startswith(PNG):
        return data
    kept, start = [PNG], len(PNG)
    while start + 12 <= len(data):
        kind, end = data[start + 4:start + 8], start + 12 + int.from_bytes(data[start:start + 4], "big")
        whole = zlib.crc32(data[start + 4:end - 4]) == int.from_bytes(data[end - 4:end], "big")
        if kind in PIXEL_CHUNKS or (kind == b"eXIf" and whole):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def has_more_than_8_bits(image: ImageFile.ImageFile) -> bool:
    """Whether a file, before it is decoded, has more than 8 bits a channel."""
    raw = [str(tile[3]) for tile in image.tile]
    return image.mode.startswith(("I", "F")) or any(re.search(";16[BLN]", mode) for mode in raw)


def reduce_to_8_bits(image: Image.Image, path: str | Path, limits: tuple[int, int] | None) -> Image.Image:
    """A greyscale image whose raw values from limits[0] to limits[1] became 0 to 255, rounded, others cut.

    Raises `UserError` without limits, and for colours, of whose 16 bits Pillow keeps eight.
    """
    found = (f"{path}: an image of mode {image.mode} (more than 8 bits a channel) found, 8 bits expected; "
             "convert it to an 8-bit file")
    if image.mode not in ("I", "I;16", "I;16B", "I;16L"):
        raise UserError(found)
    values = np.asarray(image)
    if limits is None:
        low, high = int(values.min()), int(values.max())
        raise TooManyBits(f"{found}, or, with --dataset folders and in embed.py, give --range LOW HIGH, the "
                          "raw values that become black and white in all images (this one has "
                          f"{low} to {high})", low, high)
    low, high = limits
    scaled = (values.clip(low, high).astype(np.float64) - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def describe_bytes(path: str | Path) -> str:
    """Size and beginning of a file that is no image."""
    with open(path, "rb") as file:
        return f"{os.path.getsize(path)} bytes that begin with {file.read(12)!r}"


# ------------------------------------------------------------------------------------------------ many images
def read_batches(paths: Sequence[str], spec: ImageSpec, batch_size: int, workers: int,
                 unreadable: dict[str, str] | None = None) -> Iterator[np.ndarray]:
    """Batches (B, height, width, 3) uint8 of image files in order; `UserError` names one that it cannot read.

    workers: threads that read ahead (Pillow lets others run while it decodes), 0: none. unreadable: takes the
    error of each file that cannot be read, which its batch is without then. Parts of one file that follow
    each other are cut from one decoding of it.
    """
    def read(parts: list[str]) -> list[np.ndarray | UserError]:
        found = read_parts(parts, spec.range, partial(resized, spec=spec))
        for path, image in zip(parts, found):
            if isinstance(image, UserError):
                if unreadable is None:
                    raise image
                unreadable[path] = str(image)
        return found

    files = [list(parts) for _, parts in itertools.groupby(map(str, paths), file_of)]
    with contextlib.closing(in_order(read, files, workers, batch_size + 2 * workers)) as reading:
        images = itertools.chain.from_iterable(reading)
        for _ in range(0, len(paths), batch_size):
            batch = itertools.islice(images, batch_size)
            found = [image for image in batch if not isinstance(image, UserError)]
            yield np.stack(found) if found else np.empty((0, spec.height, spec.width, 3), np.uint8)


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """Results of a function in the order of its items, by threads that are at most so many items ahead."""
    if workers == 0:
        yield from map(function, items)
        return
    jobs: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                jobs.append(pool.submit(function, item))
                if len(jobs) > ahead:
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_images(paths: Sequence[str], spec: ImageSpec, workers: int = 4, *, out: np.ndarray | None = None,
                title: str = "", silent: bool = True) -> np.ndarray:
    """Read images into one array (N, height, width, 3) uint8 with threads, into `out` where it is given."""
    images = np.empty((len(paths), spec.height, spec.width, 3), np.uint8) if out is None else out
    with contextlib.closing(in_order(partial(read_image, spec=spec), paths, workers, 4 * workers)) as reading:
        for index, image in enumerate(tqdm(reading, title, len(paths), unit="image", disable=silent or None,
                                           leave=False)):
            images[index] = image
    return images
