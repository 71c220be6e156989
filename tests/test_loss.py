"""The losses against plain loops."""
import math

import pytest
import torch
from torch.nn import functional as F

from loss import (LOSSES, Criterion, batch_hard_triplet, hetero_center_triplet, squared_triplet,
                  weighted_distances, weighted_triplet)
from model import METHODS, Loss, Output


def batch(seed: int, persons: int = 3, images: int = 4, dim: int = 5):
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randn(persons * images, dim, generator=generator)
    return feats, torch.arange(persons).repeat(images)


def test_batch_hard_triplet():
    feats, labels = batch(0)
    expected = 0.0
    for i in range(len(feats)):
        positives = [math.dist(feats[i], feats[j]) for j in range(len(feats))
                     if labels[i] == labels[j] and i != j]
        negatives = [math.dist(feats[i], feats[j]) for j in range(len(feats)) if labels[i] != labels[j]]
        expected += max(0.0, max(positives) - min(negatives) + 0.3) / len(feats)
    assert batch_hard_triplet(feats, labels, 0.3).item() == pytest.approx(expected, rel=1e-5)


def softplus_of_difference(positive: float, negative: float) -> float:
    """What AGW's code does with an anchor's weighted distances."""
    return max(0.0, positive - negative) + math.log1p(math.exp(-abs(positive - negative)))


def soft_margin_of_square(positive: float, negative: float) -> float:
    """What CAJ's code does with them: a soft margin loss of their squared difference, target -1 or 1."""
    target = -1 if positive > negative else 1
    return math.log(1 + math.exp(-target * min((positive - negative) ** 2, 88)))


@pytest.mark.parametrize("scale", [0.1, 1, 5, 100])
@pytest.mark.parametrize("triplet, term", [(weighted_triplet, softplus_of_difference),
                                           (squared_triplet, soft_margin_of_square)])
def test_weighted_triplets_are_those_of_the_published_code(triplet, term, scale):
    """A loop over what the code does: each kind's weights from distances with 0 for the other kind."""
    feats, labels = batch(0)
    feats, expected = scale * feats, 0.0
    for i in range(len(feats)):
        far, near = [], []
        for kept, sign, same in ((far, 1, True), (near, -1, False)):
            masked = [sign * (0.0 if i == j else math.dist(feats[i], feats[j]))
                      if (labels[i] == labels[j]) == same else 0.0 for j in range(len(feats))]
            largest = max(masked)
            own = [value for j, value in enumerate(masked) if (labels[i] == labels[j]) == same]
            exponentials = [math.exp(value - largest) for value in own]
            kept += [sign * value * e / (sum(exponentials) + 1e-6) for value, e in zip(own, exponentials)]
        expected += term(sum(far), sum(near)) / len(feats)
    assert triplet(feats, labels).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("constant", [False, True])
def test_the_gradient_goes_through_the_weights_unless_they_are_constant(constant):
    feats, labels = batch(0)
    feats = (3 * feats).double().requires_grad_()
    positive, negative = weighted_distances(feats, labels, constant)
    distances = torch.cdist(feats, feats)
    for anchor in range(len(labels)):
        same = labels == labels[anchor]
        others = torch.arange(len(labels)) != anchor
        for found, chosen, sign in ((positive, same, 1), (negative, ~same, -1)):
            values = distances[anchor][chosen].detach()
            weights = (sign * values).exp() / ((sign * values).exp().sum() + (1e-6 if sign < 0 else 0))
            slopes = weights * (1 if constant else 1 + sign * (values - (weights * values).sum()))
            kept = others[chosen]
            expected, = torch.autograd.grad((slopes[kept] * distances[anchor][chosen & others]).sum(), feats,
                                            retain_graph=True)
            mine, = torch.autograd.grad(found[anchor], feats, retain_graph=True)
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)


def test_losses_of_stripes_are_the_mean_of_the_whole_map_and_of_their_mean():
    feats, labels = batch(0, dim=20)
    logits = torch.randn(4, 12, 3)
    output = Output(feats, feats, logits[0], tuple(logits[1:]))
    parts = feats.chunk(4, 1)
    plain = {"id": [F.cross_entropy(part, labels) for part in logits],
             "triplet": [batch_hard_triplet(part, labels, 0.3) for part in parts],
             "weighted_triplet": [weighted_triplet(part, labels) for part in parts],
             "squared_triplet": [squared_triplet(part, labels) for part in parts]}
    for name, values in plain.items():
        parameters = {"margin": 0.3} if name == "triplet" else {}
        total, _ = Criterion({name: Loss(2.0, parameters)}, 3, 20)(output, labels)
        torch.testing.assert_close(total, values[0] + sum(values[1:]) / 3)


def test_identical_features_keep_finite_gradients():
    feats = torch.ones(6, 4, requires_grad=True)
    labels = torch.arange(3).repeat(2)
    (batch_hard_triplet(feats, labels, 0.3) + weighted_triplet(feats, labels)).backward()
    assert feats.grad.isfinite().all()
    assert batch_hard_triplet(feats, labels, 0.3).item() == pytest.approx(0.3)


@pytest.mark.parametrize("method", ["agw", "cgrnet", "caj"])
def test_a_criterion_is_the_weighted_sum_of_its_row(method):
    feats, labels = batch(0)
    logits, affinities = torch.randn(12, 3), dict(zip(("visible", "infrared"), torch.rand(2, 6, 4, 4)))
    losses = METHODS[method].losses
    total, parts = Criterion(losses, 3, 5)(Output(feats, feats, logits, extras={"affinities": affinities}),
                                           labels[:6])
    assert parts.keys() == losses.keys()
    plain = {"id": F.cross_entropy(logits, labels), "triplet": batch_hard_triplet(feats, labels, 0.3),
             "weighted_triplet": weighted_triplet(feats, labels),
             "squared_triplet": squared_triplet(feats, labels),
             "similarity": sum((a - b).abs() for a, b in zip(*map(torch.flatten, affinities.values()))) / 96}
    torch.testing.assert_close(total, sum(loss.weight * plain[name] for name, loss in losses.items()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_distances_do_not_lose_digits_to_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    feats = torch.randn(64, 2048) + 10
    labels = torch.arange(8).repeat(8)
    on_gpu = batch_hard_triplet(feats.cuda(), labels.cuda(), 0.3).item()
    assert on_gpu == pytest.approx(batch_hard_triplet(feats.double(), labels, 0.3).item(), rel=1e-3)


VIEWS = {"visible": "visible", "infrared": "infrared"}


def two_sides(seed: int, copies: int = 1, dim: int = 5) -> tuple[Output, torch.Tensor]:
    """Features of 3 persons with 2 visible and 2 infrared images each, and the labels of all maps."""
    feats = torch.randn(12 * copies, dim, generator=torch.Generator().manual_seed(seed)).double()
    labels = torch.tensor([0, 0, 1, 1, 2, 2]).repeat(2 * copies)
    return Output(feats, feats, feats, extras={"common": feats.flip(1)}, views=VIEWS, copies=copies), labels


def centre(feats: torch.Tensor, person: int, side: int) -> torch.Tensor:
    """The mean of a person's two images; side 0: visible, 1: infrared. feats: 12 rows."""
    return feats[6 * side + 2 * person:6 * side + 2 * person + 2].mean(0)


def test_hetero_center_is_the_triplet_of_centres_and_takes_views_of_one_modality_together():
    feats, labels = torch.randn(18, 5), torch.tensor([0, 0, 1, 1, 2, 2]).repeat(3)
    views = {"visible": "visible", "grey": "visible", "infrared": "infrared"}
    means = [feats[rows][labels[rows] == person].mean(0) for rows in (slice(12), slice(12, 18))
             for person in range(3)]
    found = hetero_center_triplet(Output(feats, feats, feats, views=views), feats, labels, 0.3)
    torch.testing.assert_close(found, batch_hard_triplet(torch.stack(means), torch.arange(3).repeat(2), 0.3))


def test_centre_pairs_of_each_further_map():
    output, labels = two_sides(1, copies=3)
    one, two, three = output.feats.chunk(3)
    expected = 0.0
    for copy in (two, three):
        for visible, infrared in ((0, 1), (1, 0)):
            for person in range(3):
                others = [other for other in range(3) if other != person]
                own, copied = centre(one, person, visible), centre(copy, person, visible)
                reach = math.dist(centre(one, person, infrared), copied)
                nearest = [math.dist(own, copied)] + [
                    min(math.dist(anchor, centre(maps, other, visible)) for other in others)
                    for anchor, maps in ((copied, copy), (own, one))]
                hinges = [max(0.0, reach - near + 0.2) for near in nearest]
                expected += (hinges[0] + hinges[1] / 2 + hinges[2] / 2) / 6
    found = LOSSES["centre_pairs"](output, labels, 0.2)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    orthogonal = sum((x * y).sum() for x, y in zip(two, three)) / 36
    torch.testing.assert_close(LOSSES["orthogonality"](output, labels), orthogonal)


def test_circle():
    output, labels = two_sides(2)
    unit = F.normalize(output.neck)
    expected = 0.0
    for i in range(12):
        near = far = 0.0
        for j in range(12):
            cosine = (unit[i] @ unit[j]).item()
            if labels[i] != labels[j]:
                near += math.exp(64 * max(0, cosine + 0.45) * (cosine - 0.45))
            elif i != j:
                far += math.exp(-64 * max(0, 1.45 - cosine) * (cosine - 0.55))
        expected += math.log1p(near * far) / 12
    assert LOSSES["circle"](output, labels).item() == pytest.approx(expected / 12, rel=1e-5)


def plain_discrepancy(one: torch.Tensor, two: torch.Tensor) -> float:
    rows = [*one, *two]
    squared = [[math.dist(x, y) ** 2 for y in rows] for x in rows]
    width = sum(map(sum, squared)) / (len(rows) ** 2 - len(rows))
    total = 0.0
    for i, line in enumerate(squared):
        for j, value in enumerate(line):
            sign = 1 if (i < len(one)) == (j < len(one)) else -1
            kernel = sum(math.exp(-value / (width / 4 * 2 ** power)) for power in range(5))
            total += sign * kernel / (len(one) ** 2)
    return total


def test_alignment():
    output, labels = two_sides(3)
    (v, t), (cv, ct) = (F.normalize(feats).chunk(2) for feats in (output.feats, output.extras["common"]))
    expected = (0.45 * (plain_discrepancy(v, t) + plain_discrepancy(cv, ct))
                + 0.05 * (plain_discrepancy(v, cv) + plain_discrepancy(t, ct)))
    assert LOSSES["alignment"](output, labels).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_and_its_slow_copies():
    output, labels = two_sides(4)
    torch.manual_seed(0)
    module = LOSSES["distillation"](3, 5, rate=0.2).double()
    slow = {name: layer.weight.detach().clone() for name, layer in module.fast.items()}
    with torch.no_grad():
        for layer in module.fast.values():
            layer.weight.add_(torch.randn(3, 5))
    found, expected = module(output, labels), 0.0
    for name, layer in module.fast.items():
        slow[name] = 0.8 * slow[name] + 0.2 * layer.weight
        torch.testing.assert_close(getattr(module, f"slow_{name}"), slow[name].detach())
    for feats in (output.neck, output.extras["common"]):
        for name, other, rows in (("visible", "infrared", range(6)), ("infrared", "visible", range(6, 12))):
            for i in rows:
                own = torch.softmax(module.fast[name].weight @ feats[i], 0)
                answer = torch.softmax(slow[other] @ feats[i], 0)
                expected += (own * (own / answer).log()).sum().item() / 12
                expected -= 0.25 * own[labels[i]].log().item() / 6
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in module.fast.values())
    before = module.slow_visible.clone()
    module.eval()(output, labels)
    assert torch.equal(module.slow_visible, before)


def test_the_graph_over_a_batch_and_its_weight():
    output, labels = two_sides(5, dim=8)
    torch.manual_seed(1)
    criterion = Criterion({"id": Loss(2.0), "graph": Loss(1.0, {"heads": 2, "dropout": 0.0})}, 3, 8).double()
    graph = criterion.learnt["graph"]
    assert graph(output, labels).item() == 0  # in the first epoch
    criterion.end_epoch({"id": 1.5, "graph": 7.0, "loss": 9.0, "accuracy": 0.5})
    assert graph.weight.item() == pytest.approx(1 / (1 + 2 * 1.5))

    def attend(nodes, head):
        values, results = nodes @ head.W, []
        for i in range(len(nodes)):
            mine = [j for j in range(len(nodes)) if labels[j] == labels[i]]
            energies = [F.leaky_relu(torch.cat([values[i], values[j]]) @ head.a, 0.2) for j in mine]
            weights = torch.softmax(torch.cat(energies), 0)
            results.append(sum(weight * values[j] for weight, j in zip(weights, mine)))
        return F.elu(torch.stack(results))

    hidden = torch.cat([attend(output.feats, head) for head in graph.heads], 1)
    expected = F.nll_loss(F.log_softmax(attend(hidden, graph.last), 1), labels) / 4
    torch.testing.assert_close(graph(output, labels), expected)
    assert criterion.state_dict()["learnt.graph.weight"].item() == pytest.approx(0.25)


def test_losses_of_parts_are_sums():
    output, labels = two_sides(6)
    parts = list(torch.randn(6, 12, 5))
    output = output._replace(extras={"part_logits": parts, "part_feats": parts})
    entropies = sum(F.cross_entropy(part, labels) for part in parts)
    torch.testing.assert_close(LOSSES["part_id"](output, labels), entropies)
    torch.testing.assert_close(LOSSES["part_hetero_center"](output, labels, 0.3),
                               sum(hetero_center_triplet(output, part, labels, 0.3) for part in parts))
