"""One way to turn an image file into pixels, for pre-processing, training, testing and checking alike."""
from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from datasets.types import ImageSpec
from utils import UserError, one_line

FILTER = "LANCZOS"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB
FORMATS = ("JPEG", "PNG", "BMP")  # of the data sets; fewer decoders also mean fewer to trust
PART = re.compile(r"#xywh=(-?\d{1,9}),(-?\d{1,9}),(\d{1,9}),(\d{1,9})$")  # of an image: a W3C media fragment

# What else is found under an image's name, by its first bytes.
KNOWN = {"a TIFF file": rb"II[*+]\0|MM\0[*+]", "a GIF file": rb"GIF8", "a WebP file": rb"RIFF....WEBP",
         "a HEIC or AVIF file": rb"....ftyp(hei|hev|mif|msf|avi)",
         "a JPEG 2000 file": rb"\0\0\0\x0cjP|\xff\x4f\xff\x51", "a NumPy array": rb"\x93NUMPY",
         "a PDF": rb"%PDF", "an archive": rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!",
         "a web page": rb"\s*<(!|html|HTML|\?xml)"}


class TooManyBits(UserError):
    """An image whose raw values, from `low` to `high`, do not say which of them are black and white."""

    def __init__(self, message: str, low: int = 0, high: int = 0) -> None:
        super().__init__(message)  # alone: from process to process, an error is its message and attributes
        self.low, self.high = low, high


def read_image(path: str | Path, spec: ImageSpec) -> np.ndarray:
    """Decode an image file, turn it upright as its EXIF says, convert it to RGB, resize it (Pillow LANCZOS).

    `FILE#xywh=x,y,w,h` is a part of an upright image, in pixels from its upper left corner, as far as it lies
    within. Palette, greyscale and CMYK images convert as Pillow does; an alpha channel is dropped. Raw values
    outside `spec.range` are cut; the range is never taken from an image: each would have a scale of its own.
    Returns (height, width, 3) uint8.

    Raises `UserError` naming the file if it cannot be decoded whole, or has more than 8 bits a channel that
    no range reduces, which Pillow would cut off, or if a part lies outside.
    """
    part = PART.search(str(path))
    try:
        with Image.open(PART.sub("", str(path)), formats=FORMATS) as image:
            deep = has_more_than_8_bits(image)
            image.info.pop("transparency", None)  # dropped like an alpha channel
            upright = ImageOps.exif_transpose(image)
            if deep:
                upright = reduce_to_8_bits(upright, path, spec.range)
            upright = upright.convert("RGB")
        if part:
            upright = upright.crop(box_within(path, upright.size, *map(int, part.groups())))
        return np.array(upright.resize((spec.width, spec.height), Image.Resampling[FILTER]))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such image (a missing file, or a link that points nowhere); restore "
                        "it") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: {describe_bytes(path)} found, an image expected; remove or replace the "
                        "file") from None
    except Exception as error:  # a damaged file makes Pillow's decoders stumble in many ways
        what = one_line(error) or type(error).__name__
        raise UserError(f"{path}: cannot be decoded as an image ({what}); remove or replace the "
                        "file") from None


def box_within(path: str | Path, size: tuple[int, int], x: int, y: int, w: int,
               h: int) -> tuple[int, int, int, int]:
    """The box (left, upper, right, lower) of a part of an image (width, height); `UserError` for none."""
    left, upper, right, lower = max(x, 0), max(y, 0), min(x + w, size[0]), min(y + h, size[1])
    if left >= right or upper >= lower:
        raise UserError(f"{path}: nothing of this box lies within the image of {size[0]} x {size[1]} pixels; "
                        "mend the box")
    return left, upper, right, lower


def has_more_than_8_bits(image: ImageFile.ImageFile) -> bool:
    """Whether a file, before it is decoded, has more than 8 bits a channel."""
    raw = [str(tile[3]) for tile in image.tile]
    return image.mode.startswith(("I", "F")) or any(re.search(";16[BLN]", mode) for mode in raw)


def reduce_to_8_bits(image: Image.Image, path: str | Path,
                     limits: tuple[int, int] | None) -> Image.Image:
    """A greyscale image whose raw values from limits[0] to limits[1] became 0 to 255, rounded, others cut.

    Raises `UserError` without limits, and for colours, of whose 16 bits Pillow keeps eight.
    """
    if image.mode not in ("I", "I;16", "I;16B", "I;16L"):
        raise UserError(f"{path}: an image of mode {image.mode} (more than 8 bits a channel) found, 8 bits "
                        "expected; convert it to an 8-bit file")
    values = np.asarray(image)
    if limits is None:
        low, high = int(values.min()), int(values.max())
        raise TooManyBits(f"{path}: an image of mode {image.mode} (more than 8 bits a channel) "
                          "found, 8 bits expected; convert it to an 8-bit file, or, with --dataset folders "
                          "and in embed.py, give --range LOW HIGH, the raw values that become black and "
                          f"white in all images (this one has {low} to {high})", low, high)
    low, high = limits
    scaled = (values.clip(low, high).astype(np.float64) - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def describe_bytes(path: str | Path) -> str:
    """Say in words what a file that is no image holds."""
    if not Path(path).is_file():
        return "no regular file"  # to read a pipe again would wait for another writer
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(16)
    for name, pattern in KNOWN.items():
        if re.match(pattern, start, re.DOTALL):
            return f"{name} ({', '.join(FORMATS)} are read)"
    return "an empty file" if size == 0 else f"a file of {size} bytes in no known image format"


def read_batches(paths: Sequence[str], spec: ImageSpec, batch_size: int, workers: int,
                 unreadable: dict[str, str] | None = None) -> Iterator[np.ndarray]:
    """Batches (B, height, width, 3) uint8 of image files in order; `UserError` names one that it cannot read.

    workers: threads that read ahead (Pillow lets others run while it decodes), 0: none. unreadable: takes the
    error of each file that cannot be read, which its batch is without then.
    """
    def read(path: str) -> np.ndarray | None:
        try:
            return read_image(path, spec)
        except UserError as error:
            if unreadable is None:
                raise
            unreadable[path] = str(error)
            return None

    chunks = [paths[start:start + batch_size] for start in range(0, len(paths), batch_size)]
    if workers == 0:
        for chunk in chunks:
            yield stack(map(read, chunk), spec)
        return
    ahead = 1 + -(-2 * workers // batch_size)  # batches: the one that is next, and work for every thread
    with ThreadPoolExecutor(workers) as pool:
        def submit(chunk: Sequence[str]) -> list[Future]:
            return [pool.submit(read, path) for path in chunk]

        try:
            jobs = deque(map(submit, chunks[:ahead]))
            for chunk in [*chunks[ahead:], *[()] * len(jobs)]:
                images = [job.result() for job in jobs.popleft()]
                jobs.append(submit(chunk))
                yield stack(images, spec)
        finally:
            pool.shutdown(cancel_futures=True)


def stack(images: Iterable[np.ndarray | None], spec: ImageSpec) -> np.ndarray:
    """One batch of the images that could be read."""
    found = [image for image in images if image is not None]
    return np.stack(found) if found else np.empty((0, spec.height, spec.width, 3), np.uint8)


def read_images(paths: Sequence[str], spec: ImageSpec, workers: int = 4, *, title: str = "",
                silent: bool = True) -> np.ndarray:
    """Read images into one array (N, height, width, 3) uint8 with threads (Pillow releases the GIL)."""
    images = np.empty((len(paths), spec.height, spec.width, 3), np.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index], spec)

    with ThreadPoolExecutor(workers or 1) as pool:
        jobs = pool.map(read, range(len(paths))) if workers else map(read, range(len(paths)))
        try:
            for _ in tqdm(jobs, title, len(paths), unit="image", disable=silent or None, leave=False):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images
