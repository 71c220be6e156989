"""The augmentations of batches against plain forms for single images."""
import random

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from data_loader import (AUGMENTATIONS, LUMA, augment, draw_beta, draw_rectangles, erase_one_by_one, inside,
                         normalise, recolour, recolour_one_by_one, relight, relight_one_by_one, single_names)
from tools import plain

COUNT, SINGLE, HEIGHT, WIDTH = 10_000, 2000, 24, 12
NORMALISED = [name for name in AUGMENTATIONS if name != "standard"]


def one_image() -> torch.Tensor:
    """An image whose pixels and channels all differ, normalised, (1, 3, 24, 12)."""
    pixels = torch.from_numpy(
        np.random.default_rng(0).permutation(HEIGHT * WIDTH * 3).reshape(1, HEIGHT, WIDTH, 3) % 241 + 7)
    return normalise(pixels.byte())


def statistics(images: torch.Tensor) -> dict[str, np.ndarray]:
    """What an augmentation did to each of N copies of the image, in numbers (N,)."""
    changed = ((images - one_image()).abs() > 1e-5).any(1)
    rows, columns = torch.arange(HEIGHT).float()[:, None], torch.arange(WIDTH).float()
    share = changed.float().mean((1, 2))
    found = {"share": share, "row": (changed * rows).sum((1, 2)) / changed.sum((1, 2)).clamp_min(1),
             "column": (changed * columns).sum((1, 2)) / changed.sum((
                 1, 2)).clamp_min(1), "least": images.amin((1, 2, 3)),
             "tall": changed.any(2).sum(1).float(), "wide": changed.any(1).sum(1).float(),
             **{f"mean {number}": images[:, number].mean((1, 2)) for number in range(3)}}
    return {name: values.double().numpy().round(4) for name, values in found.items()}


def batched(name: str, modality: str) -> torch.Tensor:
    images = one_image().expand(COUNT, -1, -1, -1)
    return AUGMENTATIONS[name](images, modality, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("modality", ["visible", "infrared"])
@pytest.mark.parametrize("name", plain.AUGMENTATIONS)
def test_a_batch_has_the_distribution_of_single_images(name, modality):
    random.seed(2)
    one_by_one = torch.stack([plain.AUGMENTATIONS[name](one_image()[0], modality) for _ in range(SINGLE)])
    found, expected = statistics(batched(name, modality)), statistics(one_by_one)
    for what in found:
        assert ks_2samp(found[what], expected[what]).pvalue > 1e-3, what
    touched = (found["share"] > 0).mean()
    alone = modality == "infrared" and name in ("exchange", "grey", "channel", "mix")
    assert touched == 0 if alone else abs(touched - {"exchange": 2 / 3}.get(name, 0.5)) < 0.02


def test_erased_rectangles_are_of_the_published_size_and_each_image_has_its_own():
    images = torch.zeros(4000, 3, 128, 64)
    top, bottom, left, right = draw_rectangles(images, 0.5, torch.Generator().manual_seed(0)).double()
    chosen = bottom > top
    tall, wide = (bottom - top)[chosen], (right - left)[chosen]
    area, aspect = tall * wide / (128 * 64), tall / wide
    assert abs(chosen.double().mean() - 0.5) < 0.03
    assert 0.018 < area.min() < 0.025 and 0.38 < area.max() < 0.41 and 0.27 < aspect.min() < 0.33
    assert 3 < aspect.max() < 3.6
    assert top.min() >= 0 and left.min() >= 0 and bottom.max() <= 128 and right.max() <= 64
    assert len(torch.stack([top, bottom, left, right]).t()[chosen].unique(dim=0)) > 1800


def test_erased_pixels_are_zero_and_others_are_left_alone():
    images = torch.randn(50, 3, HEIGHT, WIDTH)
    places = draw_rectangles(images, 1.0, torch.Generator().manual_seed(0))
    found = erase_one_by_one(images.clone(), places)
    for image, result, (top, bottom, left, right) in zip(images, found, places.t().tolist()):
        expected = image.clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(result, expected)


def test_ways_for_the_cpu_and_for_a_gpu_agree():
    generator = torch.Generator().manual_seed(0)
    images = one_image().expand(40, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    places = torch.stack([draw_rectangles(images, 0.9, generator) for _ in range(4)])
    erased = erase_one_by_one(images.clone(), places[0])
    assert torch.equal(erased, images.masked_fill(inside(places[0], images), 0))
    weights = torch.cat([torch.eye(3)[torch.arange(20) % 3], torch.rand(20, 3)])
    chosen = torch.arange(40) % 4 > 0
    sums = torch.einsum("bchw,bc->bhw", images, weights)[:, None]
    torch.testing.assert_close(recolour_one_by_one(images.clone(), weights, chosen),
                               torch.where(chosen[:, None, None, None], sums, images))
    peaks = torch.stack([draw_beta(0.4, 40, generator) for _ in range(4)])
    torch.testing.assert_close(relight_one_by_one(images.clone(), places, peaks, chosen),
                               relight(images, places, peaks, chosen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NORMALISED)
def test_arguments_are_left_alone_and_results_are_channels_last(name):
    images = torch.randn(6, HEIGHT, WIDTH, 3).permute(0, 3, 1, 2)
    before = images.clone()
    found = AUGMENTATIONS[name](images, "visible", torch.Generator().manual_seed(0))
    assert torch.equal(images, before) and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, AUGMENTATIONS[name](images, "visible", torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name, ways", [("exchange", 4), ("grey", 1), ("channel", 3), ("exchanged", 3)])
def test_channels_are_copies_of_one_channel_or_of_grey(name, ways):
    image = one_image()[0]
    grey = sum(weight * part for weight, part in zip(LUMA, image))
    shown = [grey] if name == "grey" else [*image, grey][:ways]
    counts = np.zeros(ways)
    for found in batched(name, "visible"):
        if (found - image).abs().max() > 1e-5:
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
            counts[[torch.allclose(found[0], way, atol=1e-5) for way in shown].index(True)] += 1
    assert counts.min() > 0.8 * counts.mean()
    if name == "exchanged":
        assert counts.sum() == COUNT


def test_mixed_channels_are_convex_sums():
    values = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1).expand(2000, 3, 2, 2)
    found = AUGMENTATIONS["mix"](values, "visible", torch.Generator().manual_seed(0))
    shown = found[(found != values).flatten(1).any(1)]
    assert shown.min() >= 1 - 1e-4 and shown.max() <= 100 + 1e-2 and (shown[:, :1] == shown).all()
    # Beta(0.3, 0.3) has a mean of 1 / 2 and a variance of 1 / 6.4
    weights = draw_beta(0.3, 5000, torch.Generator().manual_seed(0))
    assert abs(weights.mean() - 0.5) < 0.01 and abs(weights.var() - 1 / 6.4) < 0.005


def test_strong_is_standard_exchange_and_erase():
    images = torch.randint(256, (8, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    assert single_names(("strong", "erase", "standard")) == ("standard", "exchange", "erase")
    assert torch.equal(augment(images, ("strong",), "visible", seeded()),
                       augment(images, ("standard", "exchange", "erase"), "visible", seeded()))


@pytest.mark.parametrize("modality", ("visible", "infrared"))
@pytest.mark.parametrize("first", ("standard", None))
def test_a_batch_is_what_the_rows_make_of_it_in_turn(first, modality):
    before = torch.randint(256, (8, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    images, one, other = before.clone(), *(torch.Generator().manual_seed(3) for _ in range(2))
    expected = AUGMENTATIONS["standard"](images, modality, one) if first else normalise(images)
    for name in ("exchange", "erase"):
        expected = AUGMENTATIONS[name](expected, modality, one)
    found = augment(images, (*([first] if first else []), "exchange", "erase"), modality, other)
    assert torch.equal(found, expected) and torch.equal(images, before)


def test_recolouring_with_certainty_takes_every_image():
    images, weights = torch.randn(5, 3, 4, 4), torch.full((5, 3), 1 / 3)
    grey = images.mean(1, keepdim=True).expand_as(images).clone()
    torch.testing.assert_close(recolour(images, weights, 1.0, torch.Generator()), grey)
