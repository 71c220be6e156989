"""Every way of computing a step trains: float32, bfloat16, compiled, on each device that is there."""
import numpy as np
import pytest
import torch

from data_loader import IdentitySampler, TrainBatches, TrainImages
from devices import prepare
from engine import Meters, build_optimiser, learning_rate_factor, train_steps
from loss import Criterion
from model import METHODS, MODALITIES, Method, build_network
from utils import UserError

PERSONS, IMAGES, HEIGHT, WIDTH = 4, 4, 32, 24
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"))]

pytestmark = pytest.mark.usefixtures("short")


def test_the_schedules():
    for epochs in (80, 3):  # the paper's bends stay where they are
        factors = [learning_rate_factor(epoch, epochs, "step") for epoch in range(80)]
        assert factors[:10] == [pytest.approx((epoch + 1) / 10) for epoch in range(10)]
        assert factors[10:20] == [1.0] * 10 and factors[20:50] == [0.1] * 30 and factors[50:] == [0.01] * 30
    factors = [learning_rate_factor(epoch, 16, "cosine") for epoch in range(16)]
    assert factors[0] == 0.5 and factors[8] == pytest.approx(0.5) and 0 < factors[-1] < 0.01
    assert factors[1:] == sorted(factors[1:], reverse=True) and 0 < learning_rate_factor(0, 1, "cosine") <= 1


def test_meters_are_means_and_name_the_step_that_is_not_finite():
    meters, values = Meters(epoch=2), [1.0, 2.0, 6.0]
    for value in values:
        meters.add({"loss": torch.tensor(value), "accuracy": torch.tensor(0.5)})
    assert meters.read() == {"loss": 3.0, "accuracy": 0.5}
    for value in (1.0, float("nan")):
        meters.add({"loss": torch.tensor(value), "accuracy": torch.tensor(0.5)})
    with pytest.raises(UserError, match=r"epoch 3, step 5: the loss is not finite \(loss nan accuracy 0.5\)"):
        meters.read()


def stripes() -> dict[str, TrainImages]:
    """Persons differ in their stripes' period, visible ones reddish, noise: (N, height, width, 3) uint8."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(PERSONS), IMAGES)
    rows = np.sin(np.arange(HEIGHT)[None, :, None, None] * (0.3 + 0.5 * labels[:, None, None, None]))
    images = {}
    for modality, tint in zip(MODALITIES, ((1.0, 0.6, 0.5), (0.7, 0.7, 0.7))):
        pixels = 128 + 90 * rows * np.array(tint) + rng.normal(0, 15, (len(labels), HEIGHT, WIDTH, 3))
        images[modality] = TrainImages(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), labels)
    return images


def make_training(method: Method, device: torch.device, on_device: bool):
    """Network, losses, batches and optimiser of a small run."""
    torch.manual_seed(0)
    prepare(device)
    net = build_network(method, "resnet18", PERSONS).to(device, memory_format=torch.channels_last)
    criterion, images = Criterion(method.losses, PERSONS, net.dim).to(device), stripes()
    sampler = IdentitySampler({modality: side.labels for modality, side in images.items()},
                              PERSONS, 2, seed=0)
    batches = TrainBatches(images, sampler, method.views, device, on_device, seed=0)
    return net, criterion, batches, build_optimiser(net, criterion, 0.003, False, "sgd")


def train(method: str, device: torch.device, bf16: bool, compiled: bool, on_device: bool,
          epochs: int = 8) -> list[float]:
    """The mean loss of each of a few epochs of two steps."""
    net, *rest = make_training(METHODS[method], device, on_device)
    names, losses = list(net.state_dict()), []
    if compiled:
        net.compile(backend="aot_eager", fullgraph=True)  # what --compile does, but for minutes of C++
    for epoch in range(epochs):
        meters = Meters()
        for values in train_steps(net, *rest, epoch, bf16=bf16):
            meters.add(values)
        losses.append(meters.read()["loss"])
    assert list(net.state_dict()) == names  # checkpoint keys stay clean
    return losses


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method, bf16", [("agw", False), ("cgrnet", True)])
def test_every_precision_trains(method, bf16, device):
    losses = train(method, device, bf16, False, on_device=device.type == "cuda")
    assert np.mean(losses[-2:]) < 0.6 * losses[0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_network_trains_as_an_eager_one(device):
    eager, found = (train("cgrnet", device, False, compiled, on_device=False, epochs=2)
                    for compiled in (False, True))
    np.testing.assert_allclose(found[0], eager[0], rtol=0.05)
    assert found[-1] < found[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("on_device", [True, False])
def test_no_step_makes_the_host_wait_for_the_device(on_device):
    device = torch.device("cuda", 0)
    training, meters = make_training(METHODS["cgrnet"], device, on_device), Meters()
    for epoch in range(3):
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            for values in train_steps(*training, epoch, bf16=True):
                meters.add(values)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert meters.read()
