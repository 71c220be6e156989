"""The augmentations of batches against plain forms for single images."""
import random

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from data_loader import (AUGMENTATIONS, LUMA, augment, draw_beta, draw_rectangles, inside, normalise,
                         single_names)
from datasets.images import MEAN, STD
from tools import plain

COUNT, SINGLE, HEIGHT, WIDTH = 10_000, 2000, 24, 12
NORMALISED = [name for name in AUGMENTATIONS if name != "standard"]
OF_COLOUR = "exchange", "grey", "channel", "mix", "exchanged"


def one_image() -> torch.Tensor:
    """An image whose pixels and channels all differ, normalised, (1, 3, 24, 12)."""
    pixels = torch.from_numpy(
        np.random.default_rng(0).permutation(HEIGHT * WIDTH * 3).reshape(1, HEIGHT, WIDTH, 3) % 241 + 7)
    return normalise(pixels.byte())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def statistics(images: torch.Tensor) -> dict[str, np.ndarray]:
    """What an augmentation did to each of N copies of the image, in numbers (N,)."""
    changed = ((images - one_image()).abs() > 1e-5).any(1)
    rows, columns = torch.arange(HEIGHT).float()[:, None], torch.arange(WIDTH).float()
    total = changed.sum((1, 2)).clamp_min(1)
    found = {"share": changed.float().mean((1, 2)), "least": images.amin((1, 2, 3)),
             "row": (changed * rows).sum((1, 2)) / total, "column": (changed * columns).sum((1, 2)) / total,
             "tall": changed.any(2).sum(1).float(), "wide": changed.any(1).sum(1).float(),
             **{f"mean {number}": images[:, number].mean((1, 2)) for number in range(3)}}
    return {name: values.double().numpy().round(4) for name, values in found.items()}


def batched(name: str) -> torch.Tensor:
    return AUGMENTATIONS[name](one_image().expand(COUNT, -1, -1, -1), "visible", seeded(1))


@pytest.mark.parametrize("name", plain.AUGMENTATIONS)
def test_a_batch_has_the_distribution_of_single_images(name):
    random.seed(2)
    single = torch.stack([plain.AUGMENTATIONS[name](one_image()[0], "visible") for _ in range(SINGLE)])
    found, expected = statistics(batched(name)), statistics(single)
    for what in found:
        assert ks_2samp(found[what], expected[what]).pvalue > 1e-3, what
    assert abs((found["share"] > 0).mean() - {"exchange": 2 / 3}.get(name, 0.5)) < 0.02


def test_infrared_images_keep_their_colours_and_lose_rectangles():
    images = one_image().expand(40, -1, -1, -1)
    for name in NORMALISED:
        found = AUGMENTATIONS[name](images, "infrared", seeded())
        assert torch.equal(found, images) == (name in OF_COLOUR)


def test_erased_rectangles_are_of_the_published_size_and_each_image_has_its_own():
    images = torch.zeros(4000, 3, 128, 64)
    top, bottom, left, right = draw_rectangles(images, 0.5, seeded()).double()
    chosen = bottom > top
    tall, wide = (bottom - top)[chosen], (right - left)[chosen]
    area, aspect = tall * wide / (128 * 64), tall / wide
    assert abs(chosen.double().mean() - 0.5) < 0.03
    assert 0.018 < area.min() < 0.025 and 0.38 < area.max() < 0.41 and 0.27 < aspect.min() < 0.33
    assert 3 < aspect.max() < 3.6
    assert top.min() >= 0 and left.min() >= 0 and bottom.max() <= 128 and right.max() <= 64
    assert len(torch.stack([top, bottom, left, right]).t()[chosen].unique(dim=0)) > 1800


def test_rectangles_are_erased_and_other_pixels_left_alone():
    images = torch.randn(50, HEIGHT, WIDTH, 3).permute(0, 3, 1, 2)
    places = draw_rectangles(images, 0.5, seeded())
    found, held = AUGMENTATIONS["erase"](images, "visible", seeded()), inside(places, images)
    assert (places[0] == places[1]).any()  # an image that keeps all of its pixels
    for image, (top, bottom, left, right), result, mask in zip(images, places.t().tolist(), found, held):
        expected = image.clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(result, expected) and torch.equal(mask, expected == 0)


def test_radiance_lights_one_rectangle_after_another():
    """Against a loop over the images, with the same draws."""
    generator, images = seeded(), one_image().repeat(40, 1, 1, 1)
    places = torch.stack([draw_rectangles(images, 1.0, generator) for _ in range(8)])
    peaks = torch.stack([draw_beta(0.4, 40, generator) for _ in range(8)])
    chosen = torch.rand(40, generator=generator) < 0.5
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = images * std + mean
    for index in chosen.nonzero()[:, 0].tolist():
        strength = torch.ones(3, HEIGHT, WIDTH)
        for (top, bottom, left, right), peak in zip(places[:, :, index].tolist(), peaks[:, index]):
            part = (slice(None), slice(top, bottom), slice(left, right))
            factor = (peak / expected[index][part].amax((1, 2)).clamp_min(1 / 255)).view(3, 1, 1)
            expected[index][part] *= factor
            strength[part] *= factor
            if strength.min() < 0.1:
                break
    found = AUGMENTATIONS["radiance"](images, "visible", seeded())
    assert torch.equal(found[~chosen], images[~chosen])
    torch.testing.assert_close(found, (expected - mean) / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_arguments_are_left_alone_and_results_are_channels_last(name):
    images = torch.randn(6, HEIGHT, WIDTH, 3).permute(0, 3, 1, 2)
    if name == "standard":
        images = torch.randint(256, (6, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    before, found = images.clone(), AUGMENTATIONS[name](images, "visible", seeded())
    assert torch.equal(images, before) and not torch.equal(images, found)
    assert found.stride() == images.stride() and found.dtype == images.dtype
    assert torch.equal(found, AUGMENTATIONS[name](images, "visible", seeded()))


@pytest.mark.parametrize("name, ways", [("exchange", 4), ("grey", 1), ("channel", 3), ("exchanged", 3)])
def test_channels_are_copies_of_one_channel_or_of_grey(name, ways):
    image = one_image()[0]
    grey = sum(weight * part for weight, part in zip(LUMA, image))
    shown = [grey] if name == "grey" else [*image, grey][:ways]
    counts = np.zeros(ways)
    for found in batched(name)[:4000]:
        if (found - image).abs().max() > 1e-5:
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
            counts[[torch.allclose(found[0], way, atol=1e-5) for way in shown].index(True)] += 1
    assert counts.min() > 0.8 * counts.mean()
    if name == "exchanged":
        assert counts.sum() == 4000


def test_strong_is_standard_exchange_and_erase_in_turn():
    images, generator = torch.randint(256, (8, HEIGHT, WIDTH, 3), dtype=torch.uint8), seeded(3)
    assert single_names(("strong", "erase", "standard")) == ("standard", "exchange", "erase")
    expected = normalise(AUGMENTATIONS["standard"](images, "visible", generator))
    for name in ("exchange", "erase"):
        expected = AUGMENTATIONS[name](expected, "visible", generator)
    assert torch.equal(augment(images, ("strong",), "visible", seeded(3)), expected)


def test_augmentations_come_in_order_and_without_standard_the_image_is_only_normalised(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "add", lambda images, modality, generator: images + 1)
    monkeypatch.setitem(AUGMENTATIONS, "double", lambda images, modality, generator: images * 2)
    images = torch.randint(256, (3, 5, 4, 3), dtype=torch.uint8)
    assert torch.equal(augment(images, (), "visible", seeded()), normalise(images))
    assert torch.equal(augment(images, ("add", "double"), "visible", seeded()), (normalise(images) + 1) * 2)
    standard = augment(images, ("standard",), "visible", seeded(1))
    assert torch.equal(augment(images, ("add", "standard"), "visible", seeded(1)), standard + 1)
