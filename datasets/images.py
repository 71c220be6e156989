"""One way to turn an image file into pixels, for pre-processing, training, testing and checking alike."""
from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from utils import UserError, one_line

FILTER = "LANCZOS"
FORMATS = ("JPEG", "PNG", "BMP")  # of the data sets; fewer decoders also mean fewer to trust


class TooManyBits(UserError):
    """An image whose raw values, from `low` to `high`, do not say which of them are black and white."""

    def __init__(self, message: str, low: int = 0, high: int = 0) -> None:
        super().__init__(message)  # alone: an error goes from process to process as its message and attributes
        self.low, self.high = low, high


def read_image(path: str | Path, height: int, width: int,
               levels: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image file, turn it upright as its EXIF says, convert it to RGB, resize it (Pillow LANCZOS).

    Palette, greyscale and CMYK images convert as Pillow does; an alpha channel is dropped. Returns (height,
    width, 3) uint8.

    levels: the raw values that become black and white in greyscale images of more than 8 bits, those outside
    are cut. Always given, never taken from an image: each would have a scale of its own, and noise its hot
    spots.

    Raises `UserError` naming the file if it cannot be decoded whole, or has more than 8 bits a channel that
    no levels reduce, which Pillow would cut off.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            deep = has_more_than_8_bits(image)
            image.info.pop("transparency", None)  # dropped like an alpha channel
            upright = ImageOps.exif_transpose(image)
            if deep:
                upright = reduce_to_8_bits(upright, path, levels)
            upright = upright.convert("RGB")
        return np.array(upright.resize((width, height), Image.Resampling[FILTER]))
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


def has_more_than_8_bits(image: ImageFile.ImageFile) -> bool:
    """Whether a file, before it is decoded, has more than 8 bits a channel."""
    raw = [str(tile[3]) for tile in image.tile]
    return image.mode.startswith(("I", "F")) or any(re.search(";16[BLN]", mode) for mode in raw)


def reduce_to_8_bits(image: Image.Image, path: str | Path, levels: tuple[int, int] | None) -> Image.Image:
    """A greyscale image whose raw values from levels[0] to levels[1] became 0 to 255, rounded, others cut.

    Raises `UserError` without levels, and for colours, of whose 16 bits Pillow keeps eight.
    """
    if image.mode not in ("I", "I;16", "I;16B", "I;16L"):
        raise UserError(f"{path}: an image of mode {image.mode} (more than 8 bits a channel) found, 8 bits "
                        "expected; convert it to an 8-bit file")
    values = np.asarray(image)
    if levels is None:
        low, high = int(values.min()), int(values.max())
        raise TooManyBits(f"{path}: an image of mode {image.mode} (more than 8 bits a channel) found, 8 bits "
                          "expected; convert it to an 8-bit file, or, with --dataset folders, give --range LOW "
                          "HIGH, the raw values that become black and white in all images (this one has "
                          f"{low} to {high})", low, high)
    low, high = levels
    scaled = (values.clip(low, high).astype(np.float64) - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def describe_bytes(path: str | Path) -> str:
    """Say in words what a file that is no image holds."""
    size = Path(path).stat().st_size
    return "an empty file" if size == 0 else f"a file of {size} bytes in no known image format"


def read_images(paths: list[str] | tuple[str, ...], height: int, width: int, workers: int = 4,
                levels: tuple[int, int] | None = None, *, title: str = "", silent: bool = True) -> np.ndarray:
    """Read images into one array (N, height, width, 3) uint8 with threads (Pillow releases the GIL)."""
    images = np.empty((len(paths), height, width, 3), np.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index], height, width, levels)

    with ThreadPoolExecutor(workers) as pool:
        jobs = pool.map(read, range(len(paths)))
        try:
            for _ in tqdm(jobs, title, len(paths), unit="image", disable=silent or None, leave=False):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images
