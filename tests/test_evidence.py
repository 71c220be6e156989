"""Evidence: the mean of a map is the similarity, for every method; what it shows, where it is approximate."""
import numpy as np
import pytest
import torch
from conftest import make_network, save_image
from torch.nn import functional as F

from data_loader import normalise
from datasets.types import ImageSpec
from features import Extraction, extract, torch_network
from model import METHODS
from results import FEATURES
from retrieval.evidence import find_all, find_evidence, last_maps, pair_maps

pytestmark = pytest.mark.usefixtures("short")
HEIGHT, WIDTH = 64, 32
SPEC = ImageSpec(HEIGHT, WIDTH)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 1, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for number in range(2):
        save_image(folder / f"{number}.png", [number], (WIDTH, HEIGHT))
    return str(folder / "0.png"), str(folder / "1.png")


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_either_map_is_the_similarity(method, paths):
    net, modalities = make_network(method), ("infrared", "visible")
    settings = Extraction(SPEC, 1, 0)
    for kind in FEATURES:
        first, second = (getattr(extract(torch_network(net, modality), [path], settings), kind)[0]
                         for path, modality in zip(paths, modalities))
        found = find_evidence(net, paths, modalities, SPEC, kind)
        assert found.exact == (METHODS[method].pooling == "average" and method != "ddag")
        assert ("approximate" in found.name) == (not found.exact)
        for values in found.maps:
            assert values.shape == (4, 2) and values.dtype == np.float32
            assert not found.exact or values.mean() == pytest.approx(float(first @ second), abs=1e-5)
        assert not found.exact or found.similarity == pytest.approx(float(first @ second), abs=1e-5)


def test_a_place_holds_its_own_share():
    net = make_network("cgrnet")
    maps = pair_maps(net, *(last_maps(net, image, modality)
                            for image, modality in zip(PIXELS, ("visible", "infrared"))), "bnneck")
    images = normalise(torch.from_numpy(np.concatenate(PIXELS)))
    with torch.no_grad():
        places = net.feature_maps({"visible": images[:1]})[0][0].flatten(1).T  # (positions, channels)
        necks = [net(visible=images[:1]).neck[0], net(infrared=images[1:]).neck[0]]
        shares = net.bottleneck(places) @ F.normalize(necks[1], dim=0) / necks[0].norm()
    np.testing.assert_allclose(maps[0][0].ravel(), shares.numpy(), atol=1e-5)
    assert np.ptp(maps[0]) > 1e-2


def test_for_gem_it_is_gradient_times_activation():
    net, images = make_network("agw"), normalise(torch.from_numpy(np.concatenate(PIXELS)))
    (found,), _ = pair_maps(net, *(last_maps(net, image, "visible") for image in PIXELS), "pool")
    x = net.feature_maps({"visible": images[:1]})[0].detach().requires_grad_()
    other = F.normalize(net(visible=images[1:]).feats.detach())
    feats = (x.pow(3).mean((2, 3)) + 1e-12).pow(1 / 3)
    (feats @ other.T / feats.detach().norm()).backward()
    # GeM is homogeneous
    assert found.mean() == pytest.approx((feats @ other.T / feats.norm()).item(), abs=1e-5)
    np.testing.assert_allclose(found, (x.grad * x).sum(1)[0].detach().numpy() * x[0, 0].numel(), atol=1e-6)


def test_pairs_together_are_pairs_one_by_one(paths, monkeypatch):
    monkeypatch.setattr("retrieval.evidence.PAIRS", 3)
    net, modalities = make_network("base"), ("infrared", "visible")
    pairs = [(paths[0], paths[1]), (paths[0], paths[0]), (paths[1], paths[1]), (paths[1], paths[0])]
    for pair, found in zip(pairs, find_all(net, pairs, modalities, SPEC, "pool"), strict=True):
        alone = find_evidence(net, pair, modalities, SPEC, "pool")
        assert found.paths == pair and found.similarity == pytest.approx(alone.similarity, abs=1e-6)
        for values, expected in zip(found.maps, alone.maps):
            np.testing.assert_allclose(values, expected, atol=1e-5)
