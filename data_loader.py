"""Training batches: pixels, identity sampler, augmentations of whole batches.

To add an augmentation, write a function of (images, modality, generator) and put it into `AUGMENTATIONS`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets import arrays as train_arrays
from datasets.images import MEAN, STD, read_images
from datasets.types import MODALITIES, VISIBLE, ImageSpec, TrainSplit, View
from utils import UserError

PADDING = 10  # pixels
CHANNELS = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)  # weights of R, G, B
LUMA = (0.299, 0.587, 0.114)
AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # of random rectangles: share of the image, height / width
LARGE = 0.2, 0.8  # areas of `erase_large`
ATTEMPTS = 10  # at a rectangle that fits into the image; all fail once in 10^13
RECTANGLES, DARKEST = 8, 0.1  # of `radiance`: the most for an image, and the factor that is the last


@dataclass(frozen=True)
class TrainImages:
    """Training images of one modality: pixels (N, height, width, 3) uint8, labels (N,) int64 in NumPy."""

    pixels: Tensor
    labels: np.ndarray


def load_train_images(split: TrainSplit, root: str, spec: ImageSpec, workers: int,
                      folder: str | None = None, *, silent: bool = False) -> dict[str, TrainImages]:
    """The training images of both modalities: from arrays in `folder` (default: `root`), else decoded now.

    Raises `UserError` naming the file, and the command that renews it, if arrays do not fit the images.
    """
    found = train_arrays.open_arrays(split, root, spec, folder) or {
        side.modality: read_images(side.paths, spec, workers, title=side.modality, silent=silent)
        for side in split.sides}
    return {modality: TrainImages(torch.from_numpy(pixels), split.labels(modality))
            for modality, pixels in found.items()}


# ---------------------------------------------------------------------------------------------------- sampler
class IdentitySampler:
    """Batches of N identities x P images of either modality; the i-th of each show the same person.

    An epoch shows as many images as the larger modality has. Its batches depend on (seed, epoch) alone, so
    that any epoch can be drawn again. With several processes, each takes its own identities out of one joint
    draw.
    """

    def __init__(self, labels: dict[str, np.ndarray], identities: int, images: int, seed: int,
                 processes: int = 1) -> None:
        self.places = {modality: group_by_label(values) for modality, values in labels.items()}
        self.classes = len(next(iter(self.places.values())))
        self.identities, self.images, self.seed, self.processes = identities, images, seed, processes
        if identities > self.classes:
            mend = (f"give --batch-size {self.classes} or less" if self.classes > 1 else
                    "add persons to the training lists, as a triplet needs two")
            raise UserError(f"--batch-size {identities}: {self.classes} training persons found, "
                            f"at least as many as the batch has identities expected; {mend}")
        self.steps = -(-max(map(len, labels.values())) // (identities * images * processes))

    def epoch(self, epoch: int, rank: int = 0) -> np.ndarray:
        """Image indices of one epoch and process, (steps, 2, N x P) int64: visible and infrared."""
        rng = np.random.default_rng([self.seed, epoch])
        indices = np.empty((self.steps, self.processes, 2, self.identities, self.images), np.int64)
        for step in indices:
            for process, persons in zip(step, self.draw_identities(rng)):
                for row, places in zip(process, self.places.values()):
                    row[:] = [draw(rng, places[person], self.images) for person in persons]
        return indices[:, rank].reshape(self.steps, 2, -1)

    def draw_identities(self, rng: np.random.Generator) -> np.ndarray:
        """(processes, N) identities: distinct over all processes where there are enough, else within each."""
        together = self.identities * self.processes
        if together <= self.classes:
            return rng.permutation(self.classes)[:together].reshape(self.processes, -1)
        return np.stack([rng.permutation(self.classes)[:self.identities] for _ in range(self.processes)])


def group_by_label(labels: np.ndarray) -> list[np.ndarray]:
    """Positions of each label 0..C-1."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.bincount(labels).cumsum()[:-1])


def draw(rng: np.random.Generator, places: np.ndarray, count: int) -> np.ndarray:
    """`count` of the places without repeats, or where there are fewer, each as evenly often as can be."""
    return np.concatenate([rng.permutation(places) for _ in range(0, count, len(places))])[:count]


# ----------------------------------------------------------------------------------------------- augmentation
def augment(images: Tensor, names: Sequence[str], modality: str, generator: torch.Generator) -> Tensor:
    """Augment a batch of one modality in the ways that are named, `standard` first, and normalise it.

    images (B, height, width, 3) uint8 -> (B, 3, height, width) float32 channels-last, on the generator's
    device.
    """
    names = single_names(names)
    if "standard" in names:
        images = standard(images, modality, generator)
    images = normalise(images)
    for name in names:
        if name != "standard":
            images = AUGMENTATIONS[name](images, modality, generator)
    return images


def single_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, with those that stand for several replaced by these."""
    return tuple(dict.fromkeys(single for name in names for single in COMBINED.get(name, (name,))))


def normalise(images: Tensor) -> Tensor:
    """(B, height, width, 3) uint8 -> (B, 3, height, width) channels-last, normalised as for ImageNet."""
    scale, shift = (line.repeat(images.shape[2]) for line in scale_and_shift(images.device))
    lines = images.flatten(2).float()  # long lines are faster than many pixels of three values
    return torch.addcmul(shift, lines, scale, out=lines).view(images.shape).permute(0, 3, 1, 2)


def scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset (3,) that normalise the channels of a pixel."""
    return (constant(tuple(1 / (255 * std) for std in STD), device),
            constant(tuple(-mean / std for mean, std in zip(MEAN, STD)), device))


@lru_cache
def constant(values: tuple, device: torch.device) -> Tensor:
    """A tensor of constants, made once, as the device would wait for each copy."""
    return torch.tensor(values, device=device)


def standard(images: Tensor, modality: str, generator: torch.Generator) -> Tensor:
    """Pad by 10 pixels of zeros, crop at random, mirror half of the images (B, height, width, 3) uint8."""
    batch, device = len(images), images.device
    top, left = torch.randint(2 * PADDING + 1, (2, batch), generator=generator, device=device)
    mirrored = torch.rand(batch, generator=generator, device=device) < 0.5
    return crop_and_mirror(images, top, left, mirrored)


def crop_and_mirror(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Pad (B, height, width, 3) with zeros, take the window at (top, left) of each image, mirror where told.

    What is mirrored is taken out of the mirrored image, so that lines are copied whole.
    """
    batch, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    tall, wide = padded.shape[1:3]
    runs = torch.stack([padded, padded.flip(2)]).flatten().unfold(0, 3 * width, 3)  # all of `width` pixels
    image = mirrored * batch + torch.arange(batch, device=images.device)  # of the 2 B in the stack
    left = torch.where(mirrored, 2 * PADDING - left, left)
    rows = (image * tall + top)[:, None] + torch.arange(height, device=images.device)  # (B, height)
    return runs.index_select(0, (rows * wide + left[:, None]).flatten()).view(images.shape)


def erase(images: Tensor, modality: str, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020): with probability p, a rectangle becomes the mean colour."""
    return torch.where(inside(draw_rectangles(images, p, generator), images), 0.0, images)


def erase_twice(images: Tensor, modality: str, generator: torch.Generator) -> Tensor:
    """`erase`, and once more (DNS, Jiang et al., ECCV 2024)."""
    return erase(erase(images, modality, generator), modality, generator)


def erase_large(images: Tensor, modality: str, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """With probability p, a rectangle of a fifth to four fifths of the image becomes one value.

    So does DEEN's code on SYSU-MM01, which puts ImageNet's mean colour into normalised images.
    """
    held = inside(draw_rectangles(images, p, generator, LARGE), images)
    return torch.where(held, constant(MEAN, images.device)[:, None, None], images)


def show_one(images: Tensor, modality: str, generator: torch.Generator, p: float,
             weights: tuple[tuple[float, ...], ...], modalities: Sequence[str] = (VISIBLE,)) -> Tensor:
    """With probability p, one of the ways of weighing an image's channels, of equal chance, in all three."""
    if modality not in modalities:
        return images
    rows = torch.randint(len(weights), (len(images),), generator=generator, device=images.device)
    return recolour(images, constant(weights, images.device)[rows], p, generator)


def mix(images: Tensor, modality: str, generator: torch.Generator, p: float = 0.5,
        beta: float = 0.3) -> Tensor:
    """Moderate random linear enhancement (RLE, Tan et al., NeurIPS 2024): all channels become a random mean.

    The weights are draws from Beta(beta, beta) over their sum; visible images only, with probability p.
    """
    if modality != VISIBLE:
        return images
    weights = draw_beta(beta, len(images), generator) + 1e-9
    return recolour(images, weights / weights.sum(1, keepdim=True), p, generator)


def radiance(images: Tensor, modality: str, generator: torch.Generator, p: float = 0.5,
             beta: float = 0.4) -> Tensor:
    """Radical random linear enhancement (RLE, Tan et al., NeurIPS 2024): rectangles in another light.

    With probability p, each channel of a rectangle is scaled (as a pixel value, 0 being black) so that its
    largest value is a draw from Beta(beta, beta); one rectangle after another, until some place has less than
    a tenth of its value. At most 8 rectangles; the published code has no such bound.
    """
    batch, _, height, width = images.shape
    rectangles = torch.stack([draw_rectangles(images, 1.0, generator) for _ in range(RECTANGLES)])
    peaks = [draw_beta(beta, batch, generator) for _ in range(RECTANGLES)]
    active = torch.rand(batch, generator=generator, device=images.device) < p
    scale, black = (part[:, None, None] for part in scale_and_shift(images.device))
    # the edges of all rectangles cut an image into cells, each of which is scaled as one
    rows, tops = cut(rectangles[:, :2], height)
    columns, lefts = cut(rectangles[:, 2:], width)
    brightest = brightest_of_cells(images, black, rows, columns, tops.shape[1])
    values, strength = (brightest - black) / (255 * scale), torch.ones_like(brightest)
    for (top, bottom, left, right), peak in zip(rectangles[..., None], peaks):
        tall, wide = (tops >= top) & (tops < bottom), (lefts >= left) & (lefts < right)
        region = (tall[:, :, None] & wide[:, None] & active[:, None, None])[:, None]
        largest = torch.where(region, values * strength, 0.0).amax((2, 3)).clamp_min(1 / 255)
        strength = torch.where(region, strength * (peak / largest)[:, :, None, None], strength)
        active = active & (strength.amin((1, 2, 3)) >= DARKEST)
    each = torch.arange(batch, device=images.device)[:, None, None]
    strength = strength[each, :, rows[:, :, None], columns[:, None]]  # (B, height, width, 3)
    return torch.lerp(black, images, strength.permute(0, 3, 1, 2))


# `standard` maps bytes (B, height, width, 3) to others, each other one the normalised images (B, 3, height,
# width) of a modality; what they are given they leave as it is.
AUGMENTATIONS: dict[str, Callable[[Tensor, str, torch.Generator], Tensor]] = {
    "standard": standard,
    "erase": erase,
    "exchange": partial(show_one, p=2 / 3, weights=(*CHANNELS, LUMA)),  # CAJ, Ye et al., ICCV 2021
    "grey": partial(show_one, p=0.5, weights=(LUMA,)),
    "channel": partial(show_one, p=0.5, weights=CHANNELS),
    "mix": mix,
    "radiance": radiance,
    "exchanged": partial(show_one, p=1.0, weights=CHANNELS),  # the third view of CAJ
    "grey_both": partial(show_one, p=0.5, weights=(LUMA,), modalities=MODALITIES),  # DEEN, CVPR 2023
    "erase_twice": erase_twice,
    "erase_large": erase_large,
}
COMBINED = {"strong": ("standard", "exchange", "erase")}  # names that stand for several


def draw_rectangles(images: Tensor, p: float, generator: torch.Generator,
                    areas: tuple[float, float] = AREA) -> Tensor:
    """A rectangle in each of B images with probability p, else an empty one: top, bottom, left, right (4, B).

    Area (a share of the image's) and aspect are uniform; the first of ten draws that fits counts.
    """
    height, width = images.shape[2:]
    draws = torch.rand(2 * ATTEMPTS + 3, len(images), generator=generator, device=images.device)
    area, aspect = (low + (high - low) * each for (low, high), each in
                    zip((areas, ASPECT), (draws[:ATTEMPTS], draws[ATTEMPTS:-3])))
    heights = (height * width * area * aspect).sqrt().round()
    widths = (height * width * area / aspect).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.byte().argmax(0, keepdim=True)
    tall, wide = heights.gather(0, first)[0], widths.gather(0, first)[0]
    top, left = (draws[-3] * (height - tall + 1)).floor(), (draws[-2] * (width - wide + 1)).floor()
    chosen = fits.any(0) & (draws[-1] < p)
    return torch.stack([top, top + tall * chosen, left, left + wide]).long()


def inside(rectangles: Tensor, images: Tensor) -> Tensor:
    """Which values of B images the rectangles (4, B) hold, (B, 3, height, width) bool, channels-last."""
    top, bottom, left, right = rectangles[:, :, None]
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(3 * width, device=images.device) // 3  # of the values of a line
    # bytes are combined ten times as fast as bools
    tall, wide = ((rows >= top) & (rows < bottom)).byte(), ((columns >= left) & (columns < right)).byte()
    held = (tall[:, :, None] & wide[:, None]).view(torch.bool)
    return held.view(-1, height, width, 3).permute(0, 3, 1, 2)


def cut(edges: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut the lines 0..size-1 of B images at edges (R, 2, B), each before its line.

    Returns the part that each line is in, (B, size), and the first line of each part, (B, 2 R + 1).
    """
    edges = edges.flatten(0, 1).t().sort(1).values.contiguous()
    lines = torch.arange(size, device=edges.device).expand(len(edges), -1).contiguous()
    return torch.searchsorted(edges, lines, right=True), F.pad(edges, (1, 0))


def brightest_of_cells(images: Tensor, black: Tensor, rows: Tensor, columns: Tensor, parts: int) -> Tensor:
    """The largest value of each channel in each cell, (B, 3, parts, parts); see `cut`."""
    batch, channels, height, width = images.shape
    strips = black.expand(batch, channels, parts, width).scatter_reduce(
        2, rows[:, None, :, None].expand_as(images), images, "amax")
    return black.expand(batch, channels, parts, parts).scatter_reduce(
        3, columns[:, None, None].expand_as(strips), strips, "amax")


def recolour(images: Tensor, weights: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """With probability p, the sum of an image's channels with its weights (B, 3) in all three."""
    chosen = torch.rand(len(images), generator=generator, device=images.device) < p
    red, green, blue = (weight[:, None, None] * part for weight, part in zip(weights.t(), images.unbind(1)))
    return torch.where(chosen[:, None, None, None], (red + green + blue)[:, None], images)


def draw_beta(beta: float, batch: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(beta, beta), (batch, 3) float32, for each channel."""
    # the first of two shares that are Dirichlet; torch.distributions takes no generator
    concentration = torch.full((batch, 3, 2), beta, device=generator.device)
    return torch._sample_dirichlet(concentration, generator)[..., 0]


# ---------------------------------------------------------------------------------------------------- batches
class TrainBatches:
    """Batches of an epoch on the device: ({view: images}, labels).

    Pixels live on the device where `on_device`; else, on CUDA, they are copied one batch ahead through pinned
    memory, on a stream of their own, while the device computes. Every view of a modality shows the same
    images. Augmentation of a step depends on (seed, epoch, step, rank) alone.
    """

    def __init__(self, images: dict[str, TrainImages], sampler: IdentitySampler, views: Mapping[str, View],
                 device: torch.device, on_device: bool, seed: int, rank: int = 0) -> None:
        self.pixels = [images[m].pixels.to(device) if on_device else images[m].pixels for m in MODALITIES]
        self.labels = torch.from_numpy(images[VISIBLE].labels).to(device)
        self.sampler, self.views, self.device, self.seed, self.rank = sampler, views, device, seed, rank
        self.generator = torch.Generator(device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and not on_device else None

    def __len__(self) -> int:
        return self.sampler.steps

    @property
    def images_per_step(self) -> int:
        """Images of both modalities that one step of this process sees, whatever the number of views."""
        return 2 * self.sampler.identities * self.sampler.images

    def epoch(self, epoch: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """The batches of an epoch; labels are those of any one view, (N x P,)."""
        indices = torch.from_numpy(self.sampler.epoch(epoch, self.rank))
        labels = self.labels[indices[:, 0].to(self.device)]
        for step, batch in enumerate(self.read(indices.to(self.pixels[0].device))):
            pixels = dict(zip(MODALITIES, batch))
            self.generator.manual_seed(step_seed(self.seed, epoch, step, self.rank))
            yield {name: augment(pixels[view.modality], view.augment, view.modality, self.generator)
                   for name, view in self.views.items()}, labels[step]

    def read(self, indices: Tensor) -> Iterator[Tensor]:
        """The pixels of each batch (steps, 2, N x P), as `gather` gives them, a copied batch ahead."""
        gathered = map(self.gather, indices)
        if self.stream is None:
            yield from gathered
            return
        current, pixels = torch.cuda.current_stream(self.device), next(gathered, None)
        while pixels is not None:
            current.wait_stream(self.stream)
            pixels.record_stream(current)
            following = next(gathered, None)
            yield pixels
            pixels = following

    def gather(self, index: Tensor) -> Tensor:
        """Pixels by modality on the device, (2, N x P, height, width, 3) uint8; a copy may be under way."""
        pixels = torch.empty((*index.shape, *self.pixels[0].shape[1:]), dtype=torch.uint8,
                             device=self.pixels[0].device, pin_memory=self.stream is not None)
        for half, source, rows in zip(pixels, self.pixels, index):
            torch.index_select(source, 0, rows, out=half)
        with torch.cuda.stream(self.stream):
            return pixels.to(self.device, non_blocking=True)


def step_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fits_on_device(images: dict[str, TrainImages], device: torch.device) -> bool:
    """Whether the pixels take at most half of the device's free memory."""
    needed = sum(side.pixels.numel() for side in images.values())
    return device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] / 2
