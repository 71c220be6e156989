"""Sampler, augmentation, and arrays against plain forms."""
import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data_loader import (MEAN, PADDING, STD, IdentitySampler, TrainBatches, TrainImages, augment,
                         crop_and_mirror, load_train_images, normalise)
from data_manager import DATASETS
from datasets.images import read_batches, read_image
from datasets.types import ImageSpec
from model import METHODS
from utils import UserError


def labels_of(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


LABELS = {"visible": labels_of(9, 4, 7, 2, 5), "infrared": labels_of(3, 6, 4, 8, 1)}


def test_sampler_pairs_modalities_and_draws_without_repeats_while_it_can():
    sampler = IdentitySampler(LABELS, identities=3, images=4, seed=1)
    assert sampler.steps == -(-27 // 12)
    for visible, infrared in sampler.epoch(0):
        of_visible, of_infrared = LABELS["visible"][visible], LABELS["infrared"][infrared]
        assert np.array_equal(of_visible, of_infrared)
        assert np.array_equal(of_visible, np.repeat(of_visible[::4], 4)) and len(set(of_visible)) == 3
        for index, labels in ((visible, LABELS["visible"]), (infrared, LABELS["infrared"])):
            for group in index.reshape(3, 4):
                enough = (labels == labels[group[0]]).sum()
                assert len(set(group)) == min(4, enough)


def test_sampler_depends_on_seed_and_epoch_alone():
    one, again, *others = (IdentitySampler(LABELS, 3, 4, seed).epoch(epoch)
                           for seed, epoch in ((1, 3), (1, 3), (1, 4), (2, 3)))
    assert np.array_equal(one, again) and not any(np.array_equal(one, other) for other in others)


def test_sampler_gives_processes_distinct_identities():
    sampler = IdentitySampler(LABELS, 2, 4, 0, processes=2)
    one, other = (LABELS["visible"][sampler.epoch(0, rank)[:, 0]] for rank in (0, 1))
    for a, b in zip(one, other):
        assert not set(a) & set(b)


def test_sampler_shows_every_identity_in_the_long_run():
    sampler = IdentitySampler(LABELS, 2, 1, 0)
    drawn = np.bincount(np.concatenate([LABELS["visible"][sampler.epoch(e)[:, 0]].ravel()
                                        for e in range(40)]), minlength=5)
    assert drawn.min() > 0.7 * drawn.mean() and drawn.max() < 1.3 * drawn.mean()


def test_crop_and_mirror_equals_pillow_on_single_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 20, 12, 3), dtype=np.uint8)
    top, left = rng.integers(0, 2 * PADDING + 1, (2, 6))
    mirrored = np.array([0, 1, 0, 1, 1, 0], bool)
    found = crop_and_mirror(*map(torch.from_numpy, (images, top, left, mirrored)))
    for i in range(6):
        padded = ImageOps.expand(Image.fromarray(images[i]), PADDING, 0)
        crop = padded.crop((left[i], top[i], left[i] + 12, top[i] + 20))
        expected = np.asarray(ImageOps.mirror(crop) if mirrored[i] else crop)
        assert np.array_equal(found[i].numpy(), expected)


def test_normalise():
    image = np.random.default_rng(1).integers(0, 256, (1, 5, 4, 3), dtype=np.uint8)
    expected = (image[0].transpose(2, 0, 1) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    found = normalise(torch.from_numpy(image))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_has_the_distribution_of_single_image_transforms():
    """Where a bright pixel lands, 8,000 times, against as many pads, crops and flips of single images."""
    count, height, width = 8000, 24, 22
    image = np.zeros((height, width, 3), np.uint8)
    image[12, 4] = 255
    generator = torch.Generator().manual_seed(0)
    found = augment(torch.from_numpy(image).expand(count, -1, -1, -1), ("standard",), "visible",
                    generator)[:, 0]
    found = (found > 1).float().mean(0).numpy()
    rng = np.random.default_rng(0)
    padded, expected = np.pad(image[..., 0], PADDING), np.zeros((height, width))
    for _ in range(count):
        top, left = rng.integers(0, 2 * PADDING + 1, 2)
        crop = padded[top:top + height, left:left + width]
        expected += (crop[:, ::-1] if rng.random() < 0.5 else crop) / 255 / count
    assert abs(found.sum() - expected.sum()) < 0.02
    np.testing.assert_allclose(found.sum(0), expected.sum(0), atol=0.012)
    np.testing.assert_allclose(found.sum(1), expected.sum(1), atol=0.012)
    assert found.max() < 3 / (21 * 21)


def test_batches_carry_the_pixels_that_the_sampler_names():
    """With augmentation undone (images of one value), each image is that of its index."""
    pixels = {m: torch.arange(len(v), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous()
              + 100 for m, v in LABELS.items()}
    images = {m: TrainImages(pixels[m], LABELS[m]) for m in LABELS}
    sampler = IdentitySampler(LABELS, 2, 3, 5)
    loader = TrainBatches(images, sampler, METHODS["base"].views, torch.device("cpu"), False, seed=5)
    epoch = list(loader.epoch(2))
    for (views, labels), index in zip(epoch, sampler.epoch(2), strict=True):
        for half, row in ((views["visible"], index[0]), (views["infrared"], index[1])):
            value = (half[:, 0] * STD[0] + MEAN[0]).mul(255).flatten(1).amax(1).round().long().numpy()
            seen = value > 0  # a crop may show padding only
            assert np.array_equal(value[seen], row[seen] + 100)
        assert np.array_equal(labels.numpy(), LABELS["visible"][index[0]])
    for again, before in zip(loader.epoch(2), epoch, strict=True):
        assert all(torch.equal(again[0][name], before[0][name]) for name in ("visible", "infrared"))


def test_a_copy_to_a_gpu_is_a_batch_ahead_and_waited_for(monkeypatch):
    """Streams are replaced by ones that note what is asked of them."""
    said = []
    current = SimpleNamespace(wait_stream=lambda stream: said.append("wait"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda pixels, stream: said.append(f"use {pixels}"))
    images = {m: TrainImages(torch.zeros(len(v), 4, 4, 3, dtype=torch.uint8), v) for m, v in LABELS.items()}
    loader = TrainBatches(images, IdentitySampler(LABELS, 2, 3, 5), {}, torch.device("cpu"), False, 5)
    loader.stream = object()
    monkeypatch.setattr(loader, "gather", lambda index: said.append(f"copy {index}") or index)
    for pixels in loader.read(torch.arange(3)):
        said.append(f"got {pixels}")
    assert said == ["copy 0", "wait", "use 0", "copy 1", "got 0", "wait", "use 1", "copy 2", "got 1",
                    "wait", "use 2", "got 2"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copied_pixels_give_the_batches_of_resident_ones_on_cuda():
    device = torch.device("cuda", 0)
    images = {m: TrainImages(torch.randint(256, (len(v), 33, 17, 3), dtype=torch.uint8), v)
              for m, v in LABELS.items()}
    sampler = IdentitySampler(LABELS, 2, 3, 5)
    views = METHODS["base"].views
    copied, resident = (list(TrainBatches(images, sampler, views, device, where, 5).epoch(1))
                        for where in (False, True))
    for (views, _), (others, _) in zip(copied, resident, strict=True):
        assert all(torch.equal(view, others[name]) for name, view in views.items())


def test_regdb_is_decoded_to_arrays(regdb):
    split = DATASETS["regdb"].train_split(str(regdb), 1)
    images = load_train_images(split, str(regdb), ImageSpec(32, 16), 2, silent=True)
    for modality, side in (("visible", split.visible), ("infrared", split.infrared)):
        assert images[modality].pixels.shape == (16, 32, 16, 3)
        assert np.array_equal(images[modality].pixels[5], read_image(side.paths[5], ImageSpec(32, 16)))
        assert images[modality].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("workers", [0, 9])
def test_test_images_come_in_order(regdb, workers):
    paths = sorted(map(str, (regdb / "Visible").rglob("*.bmp")))
    found = list(read_batches(paths, ImageSpec(32, 16), 5, workers))
    assert list(map(len, found)) == [5] * 6 + [2]
    single = [read_image(path, ImageSpec(32, 16)) for path in paths]
    assert np.array_equal(np.concatenate(found), np.stack(single))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_and_no_reader_is_left(regdb, workers):
    paths = sorted(map(str, (regdb / "Visible").rglob("*.bmp")))
    open(paths[7], "w").close()
    before = threading.active_count()
    with pytest.raises(UserError, match=f"{paths[7]}: cannot be decoded .* 0 bytes"):
        list(read_batches(paths, ImageSpec(32, 16), 5, workers))
    assert threading.active_count() == before


def test_readers_end_with_the_one_who_asks(regdb):
    paths, before = sorted(map(str, (regdb / "Visible").rglob("*.bmp"))) * 20, threading.active_count()
    with contextlib.closing(read_batches(paths, ImageSpec(32, 16), 8, 2)) as reading:
        next(reading)
        assert threading.active_count() > before
    assert threading.active_count() == before
