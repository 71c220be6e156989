"""Pixels: training arrays, the identity sampler, augmentations of whole batches, and the reader of test
images.

To add an augmentation, write a function of (images, modality, generator) and put it into `AUGMENTATIONS`.
"""
from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets import arrays as train_arrays
from datasets.arrays import Marks
from datasets.images import read_image, read_images
from datasets.types import MODALITIES, VISIBLE, TrainSplit, View
from utils import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB
PADDING = 10  # pixels


@dataclass(frozen=True)
class TrainImages:
    """Training images of one modality: pixels (N, height, width, 3) uint8, labels (N,) int64 in NumPy."""

    pixels: Tensor
    labels: np.ndarray


def load_train_images(split: TrainSplit, root: str, height: int, width: int, workers: int,
                      marks: Marks | None = None, *, silent: bool = False) -> dict[str, TrainImages]:
    """The training images of both modalities: pre-processed arrays where there are some, else decoded now.

    marks: of the images, if they are known. Raises `UserError` naming the file and the command that renews it
    if the arrays do not fit the images or the size.
    """
    if train_arrays.present(split, root, height, width):
        marks = marks or train_arrays.marks(split, root)
        found = train_arrays.open_arrays(split, root, height, width, marks)
    else:
        found = {side.modality: (read_images(side.paths, height, width, workers, side.levels, title=side.modality,
                                             silent=silent), split.labels(side.modality)) for side in split.sides}
    return {modality: TrainImages(torch.from_numpy(pixels), labels) for modality, (pixels, labels) in found.items()}


# ---------------------------------------------------------------------------------------------------- sampler
class IdentitySampler:
    """Batches of N identities x P visible and P infrared images; the i-th of each modality show the same
    person.

    An epoch shows as many images as the larger modality has. Its batches depend on (seed, epoch) alone, so
    that any epoch can be drawn again. With several processes, each takes its own identities out of one joint
    draw.
    """

    def __init__(self, labels: dict[str, np.ndarray], identities: int, images: int, seed: int, processes: int = 1) -> None:
        self.places = {modality: group_by_label(values) for modality, values in labels.items()}
        self.classes = len(next(iter(self.places.values())))
        self.identities, self.images, self.seed, self.processes = identities, images, seed, processes
        if identities > self.classes:
            raise UserError(f"--batch-size {identities}: {self.classes} training persons found, at least as "
                            f"many as the batch has identities expected; give --batch-size {self.classes} or "
                            "less")
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
        """(processes, N) identities: distinct over all processes where there are enough, always within one."""
        if self.identities * self.processes <= self.classes:
            return rng.permutation(self.classes)[:self.identities * self.processes].reshape(self.processes, -1)
        return np.stack([rng.permutation(self.classes)[:self.identities] for _ in range(self.processes)])


def group_by_label(labels: np.ndarray) -> list[np.ndarray]:
    """Positions of each label 0..C-1."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, labels.max() + 1)))


def draw(rng: np.random.Generator, places: np.ndarray, count: int) -> np.ndarray:
    """`count` of the places without repeats, or every place as evenly often as can be where there are fewer."""
    rounds = [rng.permutation(places) for _ in range(-(-count // len(places)))]
    return np.concatenate(rounds)[:count]


# ----------------------------------------------------------------------------------------------- augmentation
def augment(images: Tensor, names: Sequence[str], modality: str, generator: torch.Generator) -> Tensor:
    """Augment a batch of one modality in the ways that are named, one after the other, and normalise it.

    images (B, height, width, 3) uint8 -> (B, 3, height, width) channels-last, on the same device. `generator`
    belongs to that device.
    """
    if "standard" not in names:
        images = normalise(images)
    for name in sorted(names, key=lambda name: name != "standard"):  # the one that works on bytes
        images = AUGMENTATIONS[name](images, modality, generator)
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


# Each but `standard` maps normalised images (B, 3, height, width) of a modality to others; see `augment`.
AUGMENTATIONS: dict[str, Callable[[Tensor, str, torch.Generator], Tensor]] = {"standard": standard}


def augment_one_by_one(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """`normalise(crop_and_mirror(...))` for the CPU: one image at a time stays in its cache (docs/speed.md)."""
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
    """(B, height, width, 3) uint8 -> (B, 3, height, width) channels-last, by ImageNet's mean and standard
    deviation.
    """
    scale, shift = scale_and_shift(images.device, images.shape[2])
    lines = images.flatten(2).float()
    return torch.addcmul(shift, lines, scale, out=lines).view(images.shape).permute(0, 3, 1, 2)


@functools.lru_cache
def scale_and_shift(device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    """Factor and offset of each value of a line of pixels, made once: a copy from the host would make the
    device wait.
    """
    return (torch.tensor([1 / (255 * std) for std in STD] * width, device=device),
            torch.tensor([-mean / std for mean, std in zip(MEAN, STD)] * width, device=device))


class TrainBatches:
    """Batches of an epoch on the device: ({view: images}, labels), one read ahead of the step that uses it.

    Pixels live on the device where `on_device`; else a thread gathers them into (pinned) memory and copies
    them, on CUDA on a stream of its own, while the device computes. Every view of a modality shows the same
    images. Augmentation of a step depends on (seed, epoch, step, rank) alone.
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
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.gather, indices[start]) if start < len(indices) else None
            for step in range(start, len(indices)):
                pixels = dict(zip(MODALITIES, self.arrived(ahead.result())))
                ahead = pool.submit(self.gather, indices[step + 1]) if step + 1 < len(indices) else None
                self.generator.manual_seed(step_seed(self.seed, epoch, step, self.rank))
                yield {name: augment(pixels[view.modality], view.augment, view.modality, self.generator)
                       for name, view in self.views.items()}, labels[step]

    def gather(self, index: Tensor) -> Tensor:
        """One batch's raw pixels by modality: (2, N x P, height, width, 3) uint8, on their way to the device."""
        pixels = torch.empty((*index.shape, *self.pixels[0].shape[1:]), dtype=torch.uint8, device=self.pixels[0].device,
                             pin_memory=self.stream is not None)
        for half, source, rows in zip(pixels, self.pixels, index):
            if self.on_device:
                torch.index_select(source, 0, rows, out=half)
            else:  # by NumPy: a second team of torch's threads would stand in the way of the one that computes
                # no row is outside; mode="raise" would copy twice
                np.take(source.numpy(), rows.numpy(), 0, half.numpy(), mode="clip")
        if self.stream is not None:
            with torch.cuda.stream(self.stream):
                pixels = pixels.to(self.device, non_blocking=True)
        return pixels

    def arrived(self, pixels: Tensor) -> Tensor:
        """The same pixels, for which the device's current stream waits where they come on another."""
        if self.stream is not None:
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
def batches(paths: Sequence[str], height: int, width: int, batch_size: int, workers: int,
            pin: bool = False, levels: tuple[int, int] | None = None) -> Iterator[Tensor]:
    """Batches (B, height, width, 3) uint8 of image files in order; raises `UserError` naming a file it cannot
    read.

    workers: threads that read ahead (Pillow lets others run while it decodes), 0: none. `pin`: in pinned
    memory, for a GPU. levels: see `read_image`.
    """
    def read(batch: Sequence[str]) -> list[Future]:
        return [pool.submit(read_image, path, height, width, levels) for path in batch]

    chunks = [paths[start:start + batch_size] for start in range(0, len(paths), batch_size)]
    if workers == 0:
        for chunk in chunks:
            yield stack([read_image(path, height, width, levels) for path in chunk], pin)
        return
    ahead = 1 + -(-2 * workers // batch_size)  # batches: the one that is next, and work for every thread
    with ThreadPoolExecutor(workers) as pool:
        try:
            jobs = deque(map(read, chunks[:ahead]))
            for chunk in [*chunks[ahead:], *[()] * len(jobs)]:
                images = [job.result() for job in jobs.popleft()]
                jobs.append(read(chunk))
                yield stack(images, pin)
        finally:
            pool.shutdown(cancel_futures=True)


def stack(images: list[np.ndarray], pin: bool) -> Tensor:
    """One batch of decoded images, in pinned memory for a GPU."""
    batch = torch.from_numpy(np.stack(images))
    return batch.pin_memory() if pin else batch
