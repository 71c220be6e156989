"""The networks against plain forms of what they compute."""
import dataclasses

import pytest
import torch
from torch import nn

from loss import Criterion
from methods.agw import NonLocal
from model import (METHODS, GraphReasoning, Loss, ModalitySimilarity, Output, View, build_network,
                   check_method, folded, override, pool)
from utils import UserError

pytestmark = pytest.mark.usefixtures("short")


def randomise(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Random values for every parameter, the zero-initialised ones among them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=scale)
    return module


def affine(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return layer.weight @ x + layer.bias


def standardise(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize("messages", ["normalised", "plain"])
def test_graph_reasoning_equals_a_plain_loop_over_nodes(messages):
    torch.manual_seed(0)
    graph = randomise(GraphReasoning(32, messages)).double()
    scale, norm = (1, lambda message: message) if messages == "plain" else (2 ** -0.5, standardise)
    x = torch.randn(2, 32, 4, 3).double()
    found = graph(x)
    for image, result in zip(x.flatten(2), found.flatten(2)):
        nodes = list(image.T)
        mean = sum(nodes) / 12
        query = affine(graph.readout_theta, mean)
        readout = torch.softmax(scale * torch.stack([query @ affine(graph.readout_phi, n) for n in nodes]), 0)
        from_local = sum(w * affine(graph.readout_g, n) for w, n in zip(readout, nodes))
        for i, node in enumerate(nodes):
            query = affine(graph.local_theta, node)
            weights = torch.softmax(scale * torch.stack([query @ affine(graph.local_phi, n) for n in nodes]),
                                    0)
            local = sum(w * affine(graph.local_g, n) for w, n in zip(weights, nodes))
            from_mean = affine(graph.global_g, mean)
            expected = node + sum(gamma * norm(message)
                                  for gamma, message in zip(graph.gamma, (local, from_mean, from_local)))
            torch.testing.assert_close(result[:, i], expected)


@pytest.mark.parametrize("affinity", ["cosine", "energy"])
def test_modality_similarity_equals_a_loop_over_channels(affinity):
    torch.manual_seed(2)
    module = randomise(ModalitySimilarity(affinity), 1.0)
    x = torch.randn(2, 6, 3, 2)
    found, matrix = module(x)
    for image, result, rows in zip(x.flatten(2), found.flatten(2), matrix):
        for i in range(6):
            energy = torch.stack([image[i] @ image[j] for j in range(6)])
            if affinity == "cosine":
                energy = torch.stack([energy[j] / image[i].norm() / image[j].norm() / 0.1 for j in range(6)])
            expected = torch.exp(energy.max() - energy)
            expected = expected / expected.sum()
            torch.testing.assert_close(rows[i], expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(result[i], image[i] + module.gamma
                                       * (expected[:, None] * image).sum(0), rtol=1e-4, atol=1e-5)
    x = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)[1]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, module(x.float())[1])


def test_three_views_go_through_the_streams_of_their_modalities():
    views = {"visible": View("visible"), "grey": View("visible"), "infrared": View("infrared")}
    torch.manual_seed(3)
    net = build_network(dataclasses.replace(METHODS["cgrnet"], views=views), "resnet18", 5).eval()
    images = dict(zip(views, torch.randn(3, 2, 3, 32, 16)))
    found = net(**images)
    assert found.extras["affinities"].keys() == views.keys()
    for number, (name, view) in enumerate(views.items()):
        alone = net(**{view.modality: images[name]})
        torch.testing.assert_close(found.feats[2 * number:2 * number + 2], alone.feats, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        net.streams["visible"].conv1.weight.mul_(2)
    assert torch.equal(net(infrared=images["infrared"]).feats, alone.feats)
    assert not torch.equal(net(visible=images["visible"]).feats, found.feats[:2])


def test_non_local_equals_the_full_matrix_of_products():
    torch.manual_seed(3)
    block = randomise(NonLocal(8), 0.5).eval()
    x = torch.randn(2, 8, 3, 4)
    theta, phi, g = (layer(x).flatten(1) for layer in (block.theta, block.phi, block.g))
    attention = theta[:, :, None] * phi[:, None, :] / 12
    y = (attention @ g[:, :, None]).view(2, 1, 3, 4)
    torch.testing.assert_close(block(x), x + block.W(y))


@pytest.mark.parametrize("kind, power", [("average", 1), ("gem", 3)])
@pytest.mark.parametrize("height", [7, 2])
def test_pooling_of_the_map_and_of_stripes(kind, power, height):
    """The whole map, then rows floor(i H / 3) to ceil((i + 1) H / 3) of each stripe."""
    x = torch.rand(2, 4, height, 5)
    parts = [x, *(x[:, :, i * height // 3:-(-(i + 1) * height // 3)] for i in range(3))]
    expected = torch.cat([((part ** power).flatten(2).mean(2) + 1e-12 * (power > 1)) ** (1 / power)
                          for part in parts], 1)
    torch.testing.assert_close(pool(x, kind, 3), expected)
    torch.testing.assert_close(pool(x, kind), expected[:, :4])


def test_each_part_has_a_bnneck_and_a_classifier_of_its_own():
    torch.manual_seed(3)
    net = build_network("strong", "resnet18", 5).train()
    output = net(*torch.randn(2, 4, 3, 48, 16))
    logits = [output.logits, *output.stripes]
    assert net.dim == 4 * 512 and output.feats.shape == output.neck.shape == (8, 4 * 512)
    for i, (feats, neck, found) in enumerate(zip(output.feats.chunk(4, 1), output.neck.chunk(4, 1),
                                                 logits, strict=True)):
        norm, classifier = nn.BatchNorm1d(512), nn.Linear(512, 5, bias=False)
        with torch.no_grad():
            norm.weight.copy_(net.bottleneck.weight[512 * i:512 * (i + 1)])
            classifier.weight.copy_(net.classifier.weight[5 * i:5 * (i + 1)])
        torch.testing.assert_close(norm(feats), neck)
        torch.testing.assert_close(classifier(norm(feats)), found)


@pytest.mark.parametrize("method", ["agw", "cgrnet-strong"])
def test_new_modules_start_as_the_identity(method):
    """A network with all gammas at 0 equals the network without the modules."""
    modules = METHODS[method].parts.keys() - {"stripes"}
    plain = override(METHODS[method], [f"{name}=None" for name in modules])
    torch.manual_seed(4)
    net = build_network(method, "resnet18", 5).eval().to(memory_format=torch.channels_last)
    without = build_network(plain, "resnet18", 5).eval().to(memory_format=torch.channels_last)
    without.load_state_dict({name: net.state_dict()[name] for name in without.state_dict()})
    visible, infrared = torch.randn(2, 2, 3, 48, 16)
    for found, expected in zip(net(visible, infrared)[:3], without(visible, infrared)[:3]):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("method, bf16", [*((method, True) for method in METHODS), ("cgrnet", False)])
def test_gradients_reach_every_parameter(method, bf16):
    torch.manual_seed(5)
    net = build_network(method, "resnet18", 4)
    for name, parameter in net.named_parameters():
        if "gamma" in name or ".W.1." in name:  # what starts at zero hides what is behind it for one step
            nn.init.constant_(parameter, 0.1)
    visible, infrared = torch.randn(2, 8, 3, 64, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = net(visible, infrared)
    criterion = Criterion(net.method.losses, 4, net.dim)
    criterion(output, torch.arange(4).repeat_interleave(2))[0].backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    assert output.feats.dtype == output.neck.dtype == output.logits.dtype == torch.float32


def test_keys_of_checkpoints_keep_their_first_words():
    modules = {"base": set(), "agw": {"non_local"}, "cgrnet": {"similarity", "graph"}}
    for method, words in modules.items():
        state = build_network(method, "resnet18", 5).state_dict()
        assert {name.split(".")[0] for name in state} == {"streams", "shared", "bottleneck", "classifier",
                                                          *words}


@pytest.mark.parametrize("method", ["agw", "cgrnet", "dns"])
def test_a_folded_network_gives_the_same_and_leaves_the_other_alone(method):
    torch.manual_seed(4)
    net = build_network(method, "resnet18", 5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1), (module.bias, -1, 1),
                                      (module.running_mean, -1, 1), (module.running_var, 0.5, 2)):
                nn.init.uniform_(values, low, high)
    images = torch.randn(2, 2, 3, 32, 16)
    small = folded(net)
    assert net.training and not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
    with torch.no_grad():
        for found, expected in zip(small(*images)[:3], net.eval()(*images)[:3]):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_set_changes_fields_of_a_row():
    row = METHODS["cgrnet"]
    changed = override(row, ["graph=None", "own_stages=2", "losses.triplet.weight=3",
                             "losses.triplet.margin=0.5"])
    assert changed.parts == {"similarity": "cosine", "graph": None} and changed.own_stages == 2
    assert (changed.losses["triplet"].weight, changed.losses["triplet"].parameters) == (3.0, {"margin": 0.5})
    changed = override(row, ["losses.triplet=weighted_triplet", "losses.id=None",
                             "losses.squared_triplet=0.5", "losses.weighted_triplet.constant_weights=True"])
    assert list(changed.losses) == ["weighted_triplet", "similarity", "squared_triplet"]
    assert [loss.weight for loss in changed.losses.values()] == [2.0, 10.0, 0.5]
    assert changed.losses["weighted_triplet"].parameters == {"constant_weights": True}
    with pytest.raises(UserError, match="^--set losses.id=None: no other loss is left; one expected$"):
        override(row, ["losses.triplet=None", "losses.similarity=None", "losses.id=None"])
    assert row == METHODS["cgrnet"] and row.parts["graph"] == "normalised"


@pytest.mark.parametrize("assignment, message", [
    ("grap=None", "grap found, one of own_stages, pooling, similarity, graph, losses.NAME expected"),
    ("own_stages=two", "'two' found, int expected"),
    ("pooling=max", "max found, one of average, gem expected"),
    ("losses.centre=1", "losses.centre found, one of id, triplet,"),
    ("losses.triplet.margn=1", "losses.triplet.margn found, one of weight, margin expected"),
    ("losses.triplet=centre", "centre found, one of id, triplet,"),
    ("graph", "'' found, str or None expected")])
def test_what_a_row_has_not_cannot_be_set(assignment, message):
    with pytest.raises(UserError, match=f"^--set {assignment}: {message}"):
        override(METHODS["cgrnet"], [assignment])


@pytest.mark.parametrize("changes, message", [
    ({"losses": {"tripelt": Loss()}}, "losses: tripelt found, one of id, triplet,"),
    ({"losses": {"triplet": Loss(1.0, {"margn": 1})}}, "losses.triplet: margn found, one of margin expected"),
    ({"views": {"visible": View("visible", ("standrad",))}}, "views.visible: standrad found, one of "),
    ({"parts": {"grahp": None}}, "parts: grahp found, one of similarity, graph expected"),
    ({"own_stages": 5}, "own_stages: 5 found, one of 0, 1, 2, 3, 4 expected")])
def test_a_typo_in_a_row_is_one_line(changes, message):
    with pytest.raises(UserError, match=f"^method mine: {message}"):
        check_method("mine", dataclasses.replace(METHODS["cgrnet"], **changes))


def test_what_a_network_cannot_make_is_one_line():
    for method, part, value, message in (
            ("cgrnet", "similarity", "cosnie", "cosnie found, one of cosine, energy, None expected"),
            ("cgrnet", "graph", "flat", "flat found, one of normalised, plain, None expected"),
            ("agw", "non_local", {"layer5": 1}, "layer5 found, one of layer1, layer2, "),
            ("deen", "expand_after", 4, "4 found, one of 2, 3 expected")):
        with pytest.raises(UserError, match=f"^{part}: {message}"):
            build_network(dataclasses.replace(METHODS[method], parts={part: value}), "resnet18", 3)


def test_an_output_knows_its_views():
    output = Output(*torch.zeros(3, 12, 1), copies=2,
                    views={"visible": "visible", "grey": "visible", "infrared": "infrared"})
    values = torch.arange(12)  # two images a view, twice
    assert {name: rows.tolist() for name, rows in output.by_view(values).items()} == {
        "visible": [0, 1, 6, 7], "grey": [2, 3, 8, 9], "infrared": [4, 5, 10, 11]}
    assert {name: rows.tolist() for name, rows in output.by_modality(values).items()} == {
        "visible": [0, 1, 6, 7, 2, 3, 8, 9], "infrared": [4, 5, 10, 11]}
