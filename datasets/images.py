"""One way to turn an image file into pixels, for pre-processing, training, testing and checking alike."""
from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from utils import UserError, one_line

FILTER = "LANCZOS"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB
FORMATS = ("JPEG", "PNG", "BMP")  # of the data sets; fewer decoders also mean fewer to trust


def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """Decode an image file, turn it upright as its EXIF says, convert it to RGB, resize it (Pillow LANCZOS).

    Palette, greyscale and CMYK images convert as Pillow does; an alpha channel is dropped. Returns (height,
    width, 3) uint8. Raises `UserError` naming the file if it cannot be decoded whole, or has more than 8 bits
    a channel, which Pillow would cut off.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if has_more_than_8_bits(image):
                raise UserError(f"{path}: an image of mode {image.mode} (more than 8 bits a channel) found, "
                                "8 bits expected; convert it to an 8-bit file")
            image.info.pop("transparency", None)  # dropped like an alpha channel
            upright = ImageOps.exif_transpose(image).convert("RGB")
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


def describe_bytes(path: str | Path) -> str:
    """Say in words what a file that is no image holds."""
    size = Path(path).stat().st_size
    return "an empty file" if size == 0 else f"a file of {size} bytes in no known image format"


def read_images(paths: list[str] | tuple[str, ...], height: int, width: int, workers: int = 4, *,
                title: str = "", silent: bool = True) -> np.ndarray:
    """Read images into one array (N, height, width, 3) uint8 with threads (Pillow releases the GIL)."""
    images = np.empty((len(paths), height, width, 3), np.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index], height, width)

    with ThreadPoolExecutor(workers) as pool:
        jobs = pool.map(read, range(len(paths)))
        try:
            for _ in tqdm(jobs, title, len(paths), unit="image", disable=silent or None, leave=False):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def read_batches(paths: Sequence[str], height: int, width: int, batch_size: int,
                 workers: int) -> Iterator[list[np.ndarray]]:
    """Batches of image files in order, each image (height, width, 3) uint8.

    workers: threads that read ahead, 0: none. Raises `UserError` naming a file that cannot be read.
    """
    def read(batch: Sequence[str]) -> list[Future]:
        return [pool.submit(read_image, path, height, width) for path in batch]

    chunks = [paths[start:start + batch_size] for start in range(0, len(paths), batch_size)]
    if workers == 0:
        for chunk in chunks:
            yield [read_image(path, height, width) for path in chunk]
        return
    ahead = 1 + -(-2 * workers // batch_size)  # batches: the one that is next, and work for every thread
    with ThreadPoolExecutor(workers) as pool:
        try:
            jobs = deque(map(read, chunks[:ahead]))
            for chunk in [*chunks[ahead:], *[()] * len(jobs)]:
                images = [job.result() for job in jobs.popleft()]
                jobs.append(read(chunk))
                yield images
        finally:
            pool.shutdown(cancel_futures=True)
