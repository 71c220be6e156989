"""The field's methods: their parts give the numbers of the authors' code, each trains on each backbone."""
import functools
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL
from torch import nn
from torch.nn import functional as F

import loss
import options
from backbones import BACKBONES
from engine import learning_rate_factor
from loss import Criterion
from methods.ddag import PartAttention
from methods.deen import ChannelAttention, Expansion, PositionAttention
from methods.dns import CommonSpace, SpaceShift
from model import METHODS, Output, build_network, override
from utils import UserError

FIELD = ("ddag", "deen", "dns", "hct")
pytestmark = pytest.mark.usefixtures("short")
TWO_VIEWS = {"visible": "visible", "infrared": "infrared"}


def rand(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def fill(module: nn.Module, theirs: dict[str, str] | None = None,
         unused: tuple[str, ...] = ()) -> nn.Module:
    """Weights by the order of the authors' names; `unused`: names of what their module holds beside ours."""
    state = module.state_dict()
    names = {functools.reduce(lambda word, pair: word.replace(*pair), (theirs or {}).items(), name): name
             for name in state}
    for place, name in enumerate(sorted([*names, *unused])):
        if name in names and state[names[name]].is_floating_point():
            value = 0.1 * rand(1000 + place, *state[names[name]].shape)
            state[names[name]].copy_(value.abs() + 1 if name.endswith("running_var") else value)
    return module.eval()


EXPANSION = {f"dilated.{k}.{j}.": f"FC{k + 1}{j + 1}." for k in range(2) for j in range(3)} | {
    f"restore.{k}.": f"FC{k + 1}." for k in range(2)}
PARTS = {"query": "fc1.0", "key": "fc2", "value": "fc3"}
UNUSED = ("W.0.weight", "W.0.bias", *(f"W.1.{name}" for name in (
    "weight", "bias", "running_mean", "running_var", "num_batches_tracked")))
SHIFT = {"reduce": "channel_attention", "rows": "conv_h", "columns": "conv_w"}
HIGH, LOW = (1, 2, 8, 4, 2), (2, 2, 4, 8, 4)  # seed and shape of a stage's output and of its input


@pytest.mark.parametrize("module, theirs, unused, inputs, expected", [
    (lambda: ChannelAttention(8, 4), {}, (), (HIGH, LOW), (-8.11863, 91.29426)),
    (lambda: ChannelAttention(8, 4), {}, (), (HIGH, (2, 2, 4, 4, 2)), (-8.11656, 91.28507)),
    (lambda: PositionAttention(8, 4), {}, (), (HIGH, LOW), (-8.12247, 91.29237)),
    (lambda: Expansion(8), EXPANSION, (), (HIGH,), (-2.90931, 108.98941)),
    (lambda: PartAttention(16, 3), PARTS, UNUSED, ((4, 4, 16, 6, 3), (5, 4, 16)), (2.20363, 7.71172)),
    (lambda: SpaceShift(16), SHIFT, (), ((13, 2, 16, 4, 2),), (3.31891, 53.81543)),
    (lambda: CommonSpace(16), {}, (), ((14, 3, 16),), (0.18713, 2.98812))])
def test_modules_give_the_numbers_of_the_authors_code(module, theirs, unused, inputs, expected):
    with torch.no_grad():
        found = fill(module(), theirs, unused)(*(rand(*each) for each in inputs))
    assert (found.sum().item(), found.abs().sum().item()) == pytest.approx(expected, rel=1e-4)


def test_losses_give_the_numbers_of_the_authors_code():
    labels = torch.arange(3).repeat_interleave(4)
    sides = [dict(zip(TWO_VIEWS, pair)) for pair in rand(3, 48, 16).view(2, 2, 12, 16)]
    found = loss.centre_pairs(*sides, dict.fromkeys(TWO_VIEWS, labels), 0.2)
    assert found.item() == pytest.approx(1.09586, rel=1e-4)
    feats, twice = 0.3 * rand(7, 24, 16), labels.repeat(2)
    output = Output(feats, feats, feats, views=TWO_VIEWS)
    assert loss.hetero_center_loss(output, twice, 0.3).item() == pytest.approx(0.37491, rel=1e-4)
    output = Output(None, rand(8, 24, 16), None)
    assert 24 * loss.circle_loss(output, twice).item() == pytest.approx(98.15216, rel=1e-4)
    units = [F.normalize(rand(seed, 12, 16)) for seed in (9, 10)]
    assert loss.discrepancy(*units).item() == pytest.approx(0.50842, rel=1e-4)
    pooled = rand(15, 12, 16)
    output = Output(pooled, pooled, pooled, extras={"common": rand(16, 12, 16)}, views=TWO_VIEWS)
    assert loss.alignment_loss(output, labels).item() == pytest.approx(1.02514, rel=1e-4)
    persons = torch.tensor([0, 0, 1, 1, 2, 2] * 2)
    with torch.no_grad():
        found = F.elu(fill(loss.GraphHead(16, 8, 0.2))(rand(6, 12, 16), persons[:, None] == persons))
    assert (found.sum().item(), found.abs().sum().item()) == pytest.approx((5.81407, 17.26698), rel=1e-4)


@pytest.mark.parametrize("method, arch", zip(FIELD, BACKBONES))
def test_a_training_step_of_each_method_and_on_each_backbone(method, arch):
    torch.manual_seed(0)
    net = build_network(method, arch, 4)
    criterion = Criterion(net.method.losses, 4, net.dim)
    criterion.end_epoch(dict.fromkeys(net.method.losses, 1.0))
    images = torch.randn(2, 4, 3, 64, 16)
    output = net.train()(*images)
    criterion(output, torch.tensor([0, 0, 1, 1]))[0].backward()
    for name, parameter in [*net.named_parameters(), *criterion.named_parameters()]:
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name
    with torch.no_grad():
        one, all_images = net.eval()(visible=images[0, :1]), net(visible=images[0])
    assert len(all_images.feats) == len(all_images.neck) == len(all_images.logits) == 4
    for name in ("feats", "neck"):
        found, expected = getattr(all_images, name)[:1], getattr(one, name)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_deen_refuses_maps_of_an_odd_number_of_places():
    with pytest.raises(UserError, match="^deen: a map of 3 x 1 places found, an even number expected"):
        build_network("deen", "resnet18", 4).eval()(visible=torch.randn(1, 3, 48, 16))


@pytest.mark.parametrize("method, pretrained, optim, rates", [
    ("cgrnet", True, "sgd", {("streams.", "shared."): 0.1, ("graph.gamma",): 0.02,
                             ("similarity.visible.gamma", "similarity.infrared.gamma"): 0.02}),
    ("cgrnet", True, "adam", {("streams.", "shared."): 0.1}), ("cgrnet", False, "adam", {}),
    ("agw", True, "sgd", {("streams.", "shared.", "non_local."): 0.1}),
    ("agw", False, "sgd", {("non_local.",): 0.1}),
    ("deen", True, "sgd", {("streams.", "shared.", "channels.", "positions.", "expansion."): 0.1}),
    ("dns", True, "sgd", {("streams.", "shifts.", "common."): 0.1, ("shared.layer3.",): 0.2,
                          ("shared.layer4.",): 0.25}), ("dns", False, "sgd", {})])
def test_rates_of_parameters(method, pretrained, optim, rates):
    """By the beginning of their names; 1 for all others."""
    net = build_network(method, "resnet18", 4)
    found = {parameter: group["lr"] for group in net.parameter_groups(1.0, pretrained, optim)
             for parameter in group["params"]}
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert found.keys() == set(trained.values())
    for name, parameter in trained.items():
        rate = next((rate for starts, rate in rates.items() if name.startswith(starts)), 1.0)
        assert found[parameter] == pytest.approx(rate), name


def test_what_a_loss_needs_and_a_network_lacks_is_one_line():
    net = build_network("base", "resnet18", 4)
    for name in ("centre_pairs", "orthogonality", "part_id", "part_hetero_center", "alignment",
                 "distillation", "similarity"):
        method = override(METHODS["base"], [f"losses.{name}=1"])
        with pytest.raises(UserError, match=f"^losses.{name}: .* network .* leave the loss out"):
            Criterion(method.losses, 4, net.dim)(net(*torch.randn(2, 2, 3, 32, 16)), torch.arange(2))


@pytest.mark.parametrize("name", ["hetero_center", "circle", "graph"])
def test_a_loss_of_one_method_serves_another(name):
    method = override(METHODS["strong"], [f"losses.triplet={name}"])
    net = build_network(method, "resnet18", 4)
    criterion = Criterion(method.losses, 4, net.dim)
    total, parts = criterion(net(*torch.randn(2, 4, 3, 32, 16)), torch.tensor([0, 0, 1, 1]))
    assert parts.keys() == {"id", name} and math.isfinite(total.item())


def test_recipes_say_how_their_authors_trained():
    known = vars(options.train_parser().parse_args([]))
    assert all(METHODS[method].recipe.keys() <= known.keys() for method in METHODS)
    rates = {method: [learning_rate_factor(epoch, recipe["epochs"], recipe.get("schedule", "step"))
                      for epoch in range(recipe["epochs"])]
             for method, recipe in ((method, METHODS[method].recipe) for method in FIELD)}
    deen, dns = rates["deen"], rates["dns"]
    assert [deen[epoch] for epoch in (0, 9, 19, 20, 79, 80, 150)] == [0.1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert rates["hct"] == rates["ddag"][:61] and rates["ddag"][50] == 0.01
    assert max(range(100), key=dns.__getitem__) in (15, 16)
    assert dns == pytest.approx([1e-4 + (1 - 1e-4) * (epoch + 0.5) / 16 if epoch < 16 else (99.5 - epoch) / 84
                                 for epoch in range(100)])


@pytest.mark.parametrize("method", ["ddag", "dns"])
def test_a_run_whose_losses_have_state_goes_on_to_the_bit(method, regdb, script):
    """DDAG's weight follows the epoch before, DNS's slow copies each step; both drop values out."""
    done = script("train.py", "--dataset", "regdb", "--data-path", regdb, "--method", method, *SMALL,
                  "--epochs", 3, "--save_epoch", 1)
    assert done.returncode == 0, done.stderr
    (epoch_2,) = (script.cwd / "save_model").glob("*_epoch_2.t")
    (script.cwd / "parts").mkdir()
    begun = shutil.copy(epoch_2, script.cwd / "parts")
    done = script("train.py", "--resume", begun, "--gpu", "cpu")
    assert done.returncode == 0, done.stderr
    whole, parts = (torch.load(next((script.cwd / folder).glob("*_last.t")), weights_only=True)
                    for folder in ("save_model", "parts"))
    states = [name for name in whole["criterion"] if name.endswith("graph.weight") or ".slow_" in name]
    assert states and parts["epoch"] == 3
    for part in ("net", "criterion"):
        assert whole[part].keys() == parts[part].keys()
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    if method == "ddag":
        assert 0 < whole["criterion"]["learnt.graph.weight"] < 1
