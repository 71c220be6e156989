"""The plain ways of reading, training, extracting and scoring, as published: tools.bench's measure."""
from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data_loader import MEAN, PADDING, STD, IdentitySampler, TrainImages
from loss import Criterion
from model import MODALITIES, TwoStream


class PlainImages(Dataset):
    """Items of images and a label; each image goes through PIL transforms, then through functions of tensors.

    further: for each image of an item, its modality and the names of these functions.
    """

    def __init__(self, items: Sequence[tuple], *first: Callable,
                 further: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
        self.items, self.further = items, further
        self.transform = transforms.Compose([*first, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple:
        *images, label = self.items[index]
        images = list(map(self.transform, images))
        for place, (modality, names) in enumerate(self.further):
            for name in names:
                if name != "standard":
                    images[place] = AUGMENTATIONS[name](images[place], modality)
        return *images, label


def training_loader(images: dict[str, TrainImages], sampler: IdentitySampler, workers: int,
                    names: Mapping[str, Sequence[str]]) -> DataLoader:
    """An epoch of training batches (visible, infrared, labels) from reader processes, which stay.

    names: of augmentations, by modality; `standard` is always among them.
    """
    visible, infrared = (images[modality].pixels.numpy() for modality in MODALITIES)
    items = [(visible[i], infrared[j], int(images["visible"].labels[i]))
             for i, j in sampler.epoch(0).transpose(0, 2, 1).reshape(-1, 2)]
    data = PlainImages(items, transforms.ToPILImage(), transforms.Pad(PADDING),
                       transforms.RandomCrop(visible.shape[1:3]), transforms.RandomHorizontalFlip(),
                       further=[(modality, names[modality]) for modality in MODALITIES])
    return DataLoader(data, sampler.identities * sampler.images, num_workers=workers,
                      persistent_workers=workers > 0)


def erase(image: Tensor, modality: str) -> Tensor:
    """A rectangle of zeros in a normalised image (3, H, W), half of the time."""
    if random.random() < 0.5 and (place := rectangle(image)):
        top, left, tall, wide = place
        image[:, top:top + tall, left:left + wide] = 0
    return image


def rectangle(image: Tensor) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of a random rectangle, the first of ten that is smaller than the image."""
    height, width = image.shape[1:]
    for _ in range(10):
        area, aspect = random.uniform(0.02, 0.4) * height * width, random.uniform(0.3, 1 / 0.3)
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if tall < height and wide < width:
            return random.randint(0, height - tall), random.randint(0, width - wide), tall, wide
    return None


def recoloured(image: Tensor, modality: str, p: float, weights: Callable[[], Sequence[float]]) -> Tensor:
    """A visible image whose channels are all a sum of its channels with these weights, p of the time."""
    if modality == "visible" and random.random() < p:
        image[:] = sum(weight * part for weight, part in zip(weights(), image))
    return image


def random_mean() -> list[float]:
    """Weights of three channels that sum to 1."""
    draws = [random.betavariate(0.3, 0.3) for _ in range(3)]
    return [draw / sum(draws) for draw in draws]


def radiance(image: Tensor, modality: str) -> Tensor:
    """Rectangles of another strength of light, half of the time, until some place keeps less than a tenth."""
    if random.random() < 0.5:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        values, strength = image * std + mean, torch.ones_like(image)
        for _ in range(8):
            if place := rectangle(image):
                top, left, tall, wide = place
                for number in range(3):
                    part = (number, slice(top, top + tall), slice(left, left + wide))
                    factor = random.betavariate(0.4, 0.4) / max(values[part].max().item(), 1 / 255)
                    values[part] *= factor
                    strength[part] *= factor
            if strength.min() < 0.1:
                break
        image = (values - mean) / std
    return image


ONE_CHANNEL, LUMA = ((1, 0, 0), (0, 1, 0), (0, 0, 1)), (0.299, 0.587, 0.114)
AUGMENTATIONS = {
    "erase": erase, "radiance": radiance,
    "exchange": partial(recoloured, p=2 / 3, weights=partial(random.choice, (*ONE_CHANNEL, LUMA))),
    "grey": partial(recoloured, p=0.5, weights=lambda: LUMA),
    "channel": partial(recoloured, p=0.5, weights=partial(random.choice, ONE_CHANNEL)),
    "mix": partial(recoloured, p=0.5, weights=random_mean)}


def file_loader(paths: list[str], height: int, width: int, batch_size: int, workers: int) -> DataLoader:
    """Batches (images, 0) of image files from reader processes."""
    resize = transforms.Resize((height, width), transforms.InterpolationMode.LANCZOS)
    return DataLoader(PlainImages([(path, 0) for path in paths], Image.open, resize), batch_size,
                      num_workers=workers)


def train_epoch(net: TwoStream, criterion: Criterion, loader: DataLoader, optimiser: torch.optim.Optimizer,
                device: torch.device) -> None:
    """Training steps that read every figure when they have it."""
    net.train()
    for batch in loader:
        visible, infrared, labels = (part.to(device) for part in batch)
        output = net(visible, infrared)
        total, parts = criterion(output, labels)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        right = (output.logits.argmax(1) == labels.repeat(2)).float().mean()
        for value in (total, *parts.values(), right):
            value.item()


@torch.inference_mode()
def features(net: TwoStream, loader: DataLoader, device: torch.device) -> list[Tensor]:
    """Both L2-normalised features of visible images, fetched batch by batch."""
    net.eval()
    outputs = (net(visible=images.to(device)) for images, _ in loader)
    return [F.normalize(feats).cpu() for output in outputs for feats in (output.feats, output.neck)]


def scores(dist_mat: np.ndarray, q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray,
           g_camids: np.ndarray, arrays: bool = False) -> tuple[np.ndarray, float, float]:
    """CMC, mAP and mINP of SYSU-MM01: a sort, then a loop over queries, in it Python lists, or arrays."""
    order = np.argsort(dist_mat, axis=1)
    curves, precisions, penalties = [], [], []
    for query, pid in enumerate(q_pids):
        ranked = g_pids[order[query]][~((q_camids[query] == 3) & (g_camids[order[query]] == 2))]
        matches = (ranked == pid).astype(np.int32)
        if matches.any():
            first = np.sort(np.unique(ranked, return_index=True)[1])
            persons = ranked[first] if arrays else np.array([ranked[place] for place in first])
            curves.append((persons == pid).astype(np.int32).cumsum()[:20])
            found = matches.cumsum()
            precision_at = (found / np.arange(1, len(found) + 1) if arrays
                            else np.array([n / (i + 1.) for i, n in enumerate(found)]))
            precisions.append((precision_at * matches).sum() / found[-1])
            penalties.append(found[-1] / (np.flatnonzero(matches)[-1] + 1))
    return np.mean(curves, axis=0), float(np.mean(precisions)), float(np.mean(penalties))
