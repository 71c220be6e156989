"""Pixels: training arrays, identity sampler, augmentations of whole batches, and the reader of test images.

To add an augmentation, write a function of (images, modality, generator) and put it into `AUGMENTATIONS`.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets import arrays as train_arrays
from datasets.arrays import Marks
from datasets.images import MEAN, STD, read_batches, read_images
from datasets.types import MODALITIES, VISIBLE, ImageSpec, TrainSplit, View
from utils import UserError

PADDING = 10  # pixels
CHANNELS = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)  # weights of R, G, B
LUMA = (0.299, 0.587, 0.114)
AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # of random rectangles: share of the image, height / width
ATTEMPTS = 10  # at a rectangle that fits into the image; all fail once in 10^13
RECTANGLES, DARKEST = 8, 0.1  # of `radiance`: the most for an image, and the factor that is the last


@dataclass(frozen=True)
class TrainImages:
    """Training images of one modality: pixels (N, height, width, 3) uint8, labels (N,) int64 in NumPy."""

    pixels: Tensor
    labels: np.ndarray


def load_train_images(split: TrainSplit, root: str, spec: ImageSpec, workers: int,
                      marks: Marks | None = None, folder: str | None = None, *,
                      silent: bool = False) -> dict[str, TrainImages]:
    """The training images of both modalities: pre-processed arrays where there are some, else decoded now.

    marks: of the images, if they are known; folder: of the arrays, if not `root`. Raises `UserError` naming
    the file and the command that renews it if the arrays do not fit the images or the size.
    """
    if train_arrays.present(split, root, spec.height, spec.width, folder):
        marks = marks or train_arrays.marks(split, root, folder)
        found = train_arrays.open_arrays(split, root, spec.height, spec.width, marks, folder)
    else:
        found = {side.modality: (read_images(side.paths, spec, workers, title=side.modality, silent=silent),
                                 split.labels(side.modality)) for side in split.sides}
    return {modality: TrainImages(torch.from_numpy(pixels), labels)
            for modality, (pixels, labels) in found.items()}


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
        if self.classes < 2:
            raise UserError("1 training person found, at least 2 expected, as a triplet needs another; add "
                            "persons to the training lists")
        if identities > self.classes:
            raise UserError(f"--batch-size {identities}: {self.classes} training persons found, "
                            "at least as many as the batch has identities expected; "
                            f"give --batch-size {self.classes} or less")
        self.steps = -(-max(map(len, labels.values())) // (identities * images * processes))

    def epoch(self, epoch: int, rank: int = 0) -> np.ndarray:
        """Image indices of one epoch and process, (steps, 2, N x P) int64: visible and infrared."""
        rng = np.random.default_rng([self.seed, epoch])
        indices = np.empty((self.steps, self.processes, 2, self.identities, self.images), np.int64)
        for step in range(self.steps):
            for process, persons in enumerate(self.draw_identities(rng)):
                for row, places in zip(indices[step, process], self.places.values()):
                    for slot, person in enumerate(persons):
                        row[slot] = draw(rng, places[person], self.images)
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
    return np.split(order, np.searchsorted(labels[order], np.arange(1, labels.max() + 1)))


def draw(rng: np.random.Generator, places: np.ndarray, count: int) -> np.ndarray:
    """`count` of the places without repeats, or where there are fewer, each as evenly often as can be."""
    rounds = [rng.permutation(places) for _ in range(-(-count // len(places)))]
    return np.concatenate(rounds)[:count]


# ----------------------------------------------------------------------------------------------- augmentation
def augment(images: Tensor, names: Sequence[str], modality: str, generator: torch.Generator) -> Tensor:
    """Augment a batch of one modality in the ways that are named, one after the other, and normalise it.

    images (B, height, width, 3) uint8 -> (B, 3, height, width) channels-last, on the same device. `generator`
    belongs to that device.
    """
    names = single_names(names)
    if "standard" not in names:
        images = normalise(images)
    for name in sorted(names, key=lambda name: name != "standard"):  # the one that works on bytes
        change = AUGMENTATIONS[name]
        images = (change.write if isinstance(change, InPlace) else change)(images, modality, generator)
    return images


def standard(images: Tensor, modality: str, generator: torch.Generator) -> Tensor:
    """Pad by 10 pixels of zeros, crop at random, mirror half of the images, normalise.

    images (B, height, width, 3) uint8 -> (B, 3, height, width) channels-last, equal in distribution to the
    same steps on single images.
    """
    batch, device = len(images), images.device
    offsets = torch.randint(2 * PADDING + 1, (2, batch), generator=generator, device=device)
    mirrored = torch.rand(batch, generator=generator, device=device) < 0.5
    if device.type == "cpu":
        return augment_one_by_one(images, *offsets, mirrored)
    return normalise(crop_and_mirror(images, *offsets, mirrored))


def erase(images: Tensor, modality: str, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020): with probability p, a rectangle becomes the mean colour."""
    places = draw_rectangles(images, p, generator)
    if images.device.type == "cpu":
        return erase_one_by_one(images, places)
    return images.masked_fill_(inside(places, images), 0)


def exchange(images: Tensor, modality: str, generator: torch.Generator, p: float = 2 / 3) -> Tensor:
    """Channel exchange (CAJ, Ye et al., ICCV 2021), visible: one channel, or grey, with equal chances."""
    return show_one(images, modality, generator, p, (*CHANNELS, LUMA))


def grey(images: Tensor, modality: str, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """With probability p, the luma of a visible image in all channels."""
    return show_one(images, modality, generator, p, (LUMA,))


def channel(images: Tensor, modality: str, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """With probability p, one channel of a visible image in all channels."""
    return show_one(images, modality, generator, p, CHANNELS)


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
    batch, device = len(images), images.device
    places = torch.stack([draw_rectangles(images, 1.0, generator) for _ in range(RECTANGLES)])
    peaks = torch.stack([draw_beta(beta, batch, generator) for _ in range(RECTANGLES)])
    chosen = torch.rand(batch, generator=generator, device=device) < p
    return (relight_one_by_one if device.type == "cpu" else relight)(images, places, peaks, chosen)


@dataclass(frozen=True)
class InPlace:
    """An augmentation that writes into the images, as `augment` has it do, whose batch no one else has.

    Called as any other, it works on a copy.
    """

    write: Callable[..., Tensor]

    def __call__(self, images: Tensor, modality: str, generator: torch.Generator) -> Tensor:
        return self.write(images.clone(), modality, generator)


# Each but `standard` maps normalised images (B, 3, height, width) of a modality to others; see `augment`.
AUGMENTATIONS: dict[str, Callable[[Tensor, str, torch.Generator], Tensor]] = {
    "standard": standard, "erase": InPlace(erase), "exchange": InPlace(exchange), "grey": InPlace(grey),
    "channel": InPlace(channel), "mix": InPlace(mix), "radiance": InPlace(radiance),
    "exchanged": InPlace(functools.partial(channel, p=1.0)),
}
COMBINED = {"strong": ("standard", "exchange", "erase")}  # names that stand for several


def single_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, with those that stand for several replaced by these."""
    return tuple(dict.fromkeys(single for name in names for single in COMBINED.get(name, (name,))))


def draw_rectangles(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """A random rectangle within each of B images with probability p, else an empty one: top, bottom, left,
    right (4, B) int64.

    Area and aspect are uniform; the first of ten draws that is smaller than the image counts.
    """
    height, width = images.shape[2:]
    draws = torch.rand(2 * ATTEMPTS + 3, len(images), generator=generator, device=images.device)
    area, aspect = (low + (high - low) * each for (low, high), each in
                    zip((AREA, ASPECT), (draws[:ATTEMPTS], draws[ATTEMPTS:-3])))
    heights = (height * width * area * aspect).sqrt().round()
    widths = (height * width * area / aspect).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.byte().argmax(0, keepdim=True)
    tall, wide = heights.gather(0, first)[0], widths.gather(0, first)[0]
    top, left = (draws[-3] * (height - tall + 1)).floor(), (draws[-2] * (width - wide + 1)).floor()
    chosen = fits.any(0) & (draws[-1] < p)
    return torch.stack([top, top + tall * chosen, left, left + wide]).long()


def inside(places: Tensor, images: Tensor) -> Tensor:
    """Which pixels of B images the rectangles (4, B) hold, (B, 1, height, width) bool."""
    top, bottom, left, right = places[:, :, None]
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    return (((rows >= top) & (rows < bottom))[:, None, :, None]
            & ((columns >= left) & (columns < right))[:, None, None])


def erase_one_by_one(images: Tensor, places: Tensor) -> Tensor:
    """`images.masked_fill_(inside(places, images), 0)` for the CPU, which touches the rectangles alone."""
    for image, (top, bottom, left, right) in zip(images, places.t().tolist()):
        image[:, top:bottom, left:right] = 0
    return images


def show_one(images: Tensor, modality: str, generator: torch.Generator, p: float,
             weights: tuple[tuple[float, ...], ...]) -> Tensor:
    """With probability p, a visible image in one of the ways of weighing its channels, of equal chance."""
    if modality != VISIBLE:
        return images
    rows = torch.randint(len(weights), (len(images),), generator=generator, device=images.device)
    return recolour(images, on_device(weights, images.device)[rows], p, generator)


def recolour(images: Tensor, weights: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """With probability p, the sum of an image's channels with its weights (B, 3) in all three."""
    chosen = torch.rand(len(images), generator=generator, device=images.device) < p
    if images.device.type == "cpu":
        return recolour_one_by_one(images, weights, chosen)
    sums = torch.einsum("bchw,bc->bhw", images, weights)[:, None]
    return torch.where(chosen[:, None, None, None], sums, images)


def recolour_one_by_one(images: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """The chosen images (B,) bool as sums of their channels, in place for the CPU, where a lone channel is
    copied to the others."""
    for index in chosen.nonzero()[:, 0].tolist():
        image, row = images[index], weights[index].tolist()
        if 1.0 in row:
            shown = row.index(1.0)
            for other in {0, 1, 2} - {shown}:
                image[other] = image[shown]
        else:
            image.copy_(image.permute(1, 2, 0) @ weights[index])
    return images


def relight(images: Tensor, places: Tensor, peaks: Tensor, chosen: Tensor) -> Tensor:
    """`radiance` with what it draws: rectangles (R, 4, B), their peaks (R, B, 3), which images (B,) bool."""
    scale, shift = (part[:3].view(3, 1, 1) for part in scale_and_shift(images.device, images.shape[3]))
    strength, active = torch.ones_like(images), chosen
    values = (images - shift) / (255 * scale)  # from 0 to 1
    for rectangles, peak in zip(places, peaks):
        region = inside(rectangles, images) & active[:, None, None, None]
        largest = (values * strength * region).amax((2, 3)).clamp_min(1 / 255)
        strength = torch.where(region, strength * (peak / largest)[:, :, None, None], strength)
        active = active & (strength.amin((1, 2, 3)) >= DARKEST)
    return torch.where(strength == 1, images, values * strength * (255 * scale) + shift)


def relight_one_by_one(images: Tensor, places: Tensor, peaks: Tensor, chosen: Tensor) -> Tensor:
    """`relight` in place for the CPU, which touches the rectangles alone."""
    scale, shift = (part[:3].view(3, 1, 1) for part in scale_and_shift(images.device, images.shape[3]))
    for index in chosen.nonzero()[:, 0].tolist():
        strength = torch.ones_like(images[index])
        for (top, bottom, left, right), peak in zip(places[:, :, index].tolist(), peaks[:, index]):
            if top == bottom:
                continue
            part = (slice(None), slice(top, bottom), slice(left, right))
            values = (images[index][part] - shift) / (255 * scale)
            factor = (peak / values.amax((1, 2)).clamp_min(1 / 255)).view(3, 1, 1)
            images[index][part] = values * factor * (255 * scale) + shift
            strength[part] *= factor
            if strength[part].amin() < DARKEST:
                break
    return images


def draw_beta(beta: float, batch: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(beta, beta), (batch, 3) float32, for each channel."""
    # the first of two shares that are Dirichlet; torch.distributions takes no generator
    concentration = torch.full((batch, 3, 2), beta, device=generator.device)
    return torch._sample_dirichlet(concentration, generator)[..., 0]


def augment_one_by_one(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """`normalise(crop_and_mirror(...))` for the CPU: one image at a time stays in cache (docs/speed.md)."""
    height, width = images.shape[1:3]
    scale, shift = scale_and_shift(images.device, width)
    canvas = images.new_zeros(height + 2 * PADDING, width + 2 * PADDING, 3)
    result = torch.empty(images.shape)
    for image, target, y, x, mirror in zip(images, result, top.tolist(), left.tolist(), mirrored.tolist()):
        canvas[PADDING:-PADDING, PADDING:-PADDING] = image
        window = canvas[y:y + height, x:x + width]
        lines = target.copy_(window.flip(1) if mirror else window).flatten(1)
        torch.addcmul(shift, lines, scale, out=lines)
    return result.permute(0, 3, 1, 2)


def crop_and_mirror(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Pad (B, height, width, 3) with zeros, take the window at (top, left) of each image, mirror where told.

    Lines are copied whole and bytes are chosen eight at a time, which is several times as fast as one by one.
    """
    batch, height, width, _ = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    runs = padded.flatten().unfold(0, 3 * width, 3)  # every run of `width` pixels, a view
    lines = torch.arange(batch, device=images.device)[:, None] * padded.shape[1] + top[:, None]
    lines = lines + torch.arange(height, device=images.device)  # (B, height) of the padded images
    cropped = runs.index_select(0, (lines * padded.shape[2] + left[:, None]).flatten()).view(images.shape)
    word = torch.int64 if cropped[0].numel() % 8 == 0 else torch.uint8
    choices = [choice.flatten(1).view(word) for choice in (cropped.flip(2), cropped)]
    return torch.where(mirrored[:, None], *choices).view(torch.uint8).view(images.shape)


def normalise(images: Tensor) -> Tensor:
    """(B, height, width, 3) uint8 -> (B, 3, height, width) channels-last, normalised as for ImageNet."""
    scale, shift = scale_and_shift(images.device, images.shape[2])
    lines = images.flatten(2).float()
    return torch.addcmul(shift, lines, scale, out=lines).view(images.shape).permute(0, 3, 1, 2)


@functools.lru_cache
def scale_and_shift(device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    """Factor and offset of each value of a line of pixels, made once: a copy would make the device wait."""
    return (torch.tensor([1 / (255 * std) for std in STD] * width, device=device),
            torch.tensor([-mean / std for mean, std in zip(MEAN, STD)] * width, device=device))


@functools.lru_cache
def on_device(values: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A constant table, made once, for the same reason."""
    return torch.tensor(values, device=device)


class TrainBatches:
    """Batches of an epoch on the device: ({view: images}, labels).

    Pixels live on the device where `on_device`; else, on CUDA, a thread gathers them into pinned memory and
    copies them, one batch ahead, on a stream of its own, while the device computes. Every view of a modality
    shows the same images. Augmentation of a step depends on (seed, epoch, step, rank) alone.
    """

    def __init__(self, images: dict[str, TrainImages], sampler: IdentitySampler, views: Mapping[str, View],
                 device: torch.device, on_device: bool, seed: int, rank: int = 0) -> None:
        self.pixels = [images[m].pixels.to(device) if on_device else images[m].pixels for m in MODALITIES]
        self.labels = torch.from_numpy(images[VISIBLE].labels).to(device)
        self.sampler, self.views, self.device, self.on_device = sampler, views, device, on_device
        self.seed, self.rank = seed, rank
        self.generator = torch.Generator(device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and not on_device else None

    def __len__(self) -> int:
        return self.sampler.steps

    @property
    def images_per_step(self) -> int:
        """Images of both modalities that one step of this process sees, whatever the number of views."""
        return 2 * self.sampler.identities * self.sampler.images

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """The batches from step `start` of an epoch on; labels are those of any one view, (N x P,)."""
        indices = torch.from_numpy(self.sampler.epoch(epoch, self.rank))
        labels = self.labels[indices[:, 0].to(self.device)]
        indices = indices.to(self.device) if self.on_device else indices
        for step, batch in enumerate(self.read(indices[start:]), start):
            pixels = dict(zip(MODALITIES, batch))
            self.generator.manual_seed(step_seed(self.seed, epoch, step, self.rank))
            yield {name: augment(pixels[view.modality], view.augment, view.modality, self.generator)
                   for name, view in self.views.items()}, labels[step]

    def read(self, indices: Tensor) -> Iterator[Tensor]:
        """The raw pixels of each batch, as `gather` has them, where the device's current stream may use them.

        A thread reads one ahead where pixels are copied to a GPU; on the CPU it would stand in the way of the
        threads that augment (docs/speed.md).
        """
        if self.stream is None:
            yield from map(self.gather, indices)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.gather, indices[0]) if len(indices) else None
            for following in range(1, len(indices) + 1):
                pixels = self.arrived(ahead.result())
                ahead = pool.submit(self.gather, indices[following]) if following < len(indices) else None
                yield pixels

    def gather(self, index: Tensor) -> Tensor:
        """A batch's raw pixels by modality, (2, N x P, height, width, 3) uint8, on the way to the device."""
        pixels = torch.empty((*index.shape, *self.pixels[0].shape[1:]), dtype=torch.uint8,
                             device=self.pixels[0].device, pin_memory=self.stream is not None)
        for half, source, rows in zip(pixels, self.pixels, index):
            torch.index_select(source, 0, rows, out=half)
        if self.stream is not None:
            with torch.cuda.stream(self.stream):
                pixels = pixels.to(self.device, non_blocking=True)
        return pixels

    def arrived(self, pixels: Tensor) -> Tensor:
        """The same pixels, for which the device's current stream waits."""
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        pixels.record_stream(current)
        return pixels


def step_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fits_on_device(images: dict[str, TrainImages], device: torch.device) -> bool:
    """Whether the pixels take at most half of the device's free memory."""
    needed = sum(side.pixels.numel() for side in images.values())
    return device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] / 2


# ------------------------------------------------------------------------------------------------ test images
def batches(paths: Sequence[str], spec: ImageSpec, batch_size: int, workers: int,
            pin: bool = False) -> Iterator[Tensor]:
    """`read_batches` as tensors, in pinned memory for a GPU (`pin`)."""
    with contextlib.closing(read_batches(paths, spec, batch_size, workers)) as reading:
        for images in reading:
            batch = torch.from_numpy(images)
            yield batch.pin_memory() if pin else batch
