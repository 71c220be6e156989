"""The plain ways of reading, training, extracting and scoring, as this field publishes them: what tools.bench measures against."""
from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """Items of images and a label; each image goes through PIL transforms by itself."""

    def __init__(self, items: Sequence[tuple], *first: Callable) -> None:
        self.items, self.transform = items, transforms.Compose([*first, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple:
        *images, label = self.items[index]
        return *map(self.transform, images), label


def training_loader(images: dict[str, TrainImages], sampler: IdentitySampler, workers: int) -> DataLoader:
    """One epoch of training batches (visible, infrared, labels) from reader processes, which stay for the next."""
    visible, infrared = (images[modality].pixels.numpy() for modality in MODALITIES)
    items = [(visible[i], infrared[j], int(images["visible"].labels[i]))
             for i, j in sampler.epoch(0).transpose(0, 2, 1).reshape(-1, 2)]
    data = PlainImages(items, transforms.ToPILImage(), transforms.Pad(PADDING), transforms.RandomCrop(visible.shape[1:3]),
                       transforms.RandomHorizontalFlip())
    return DataLoader(data, sampler.identities * sampler.images, num_workers=workers, persistent_workers=True)


def file_loader(paths: list[str], height: int, width: int, batch_size: int, workers: int) -> DataLoader:
    """Batches (images, 0) of image files from reader processes."""
    resize = transforms.Resize((height, width), transforms.InterpolationMode.LANCZOS)
    return DataLoader(PlainImages([(path, 0) for path in paths], Image.open, resize), batch_size, num_workers=workers)


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


def scores(dist_mat: np.ndarray, q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray,
           arrays: bool = False) -> tuple[np.ndarray, float, float]:
    """CMC, mAP and mINP of SYSU-MM01: one sort, then a loop over queries, within it Python lists, or arrays throughout."""
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
            precision_at = found / np.arange(1, len(found) + 1) if arrays else np.array([n / (i + 1.) for i, n in enumerate(found)])
            precisions.append((precision_at * matches).sum() / found[-1])
            penalties.append(found[-1] / (np.flatnonzero(matches)[-1] + 1))
    return np.mean(curves, axis=0), float(np.mean(precisions)), float(np.mean(penalties))
