"""CGRNet's two modules, and METHODS: a row for each method that can be trained."""
from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import STAGES, Backbone
from data_loader import AUGMENTATIONS, COMBINED
from datasets.types import MODALITIES, View
from loss import LOSSES
from methods.agw import AGW
from methods.ddag import DDAG
from methods.deen import DEEN
from methods.dns import DNS
from methods.hct import HCT
from methods.strong import Striped
from two_stream import Loss, Method, Output, TwoStream, folded, pool, require_known
from utils import UserError

__all__ = ["METHODS", "MODALITIES", "CGRNet", "GraphReasoning", "Loss", "Method", "ModalitySimilarity",
           "Output", "StripedCGRNet", "TwoStream", "View", "build_network", "check_method", "folded",
           "override", "pool"]


class ModalitySimilarity(nn.Module):
    """Channel attention of a modality: X + gamma A X; A (B, C, C) compares the channels of X (B, C, H, W).

    A is the row-wise softmax of max(E) - E (DANet, Fu et al., CVPR 2019), in float32 also under autocast.
    `energy` takes E = X X^T as the paper does; a sum over thousands of positions, it saturates to one-hot
    rows that carry next to no gradient. `cosine` divides by the norms of both channels and by 0.1.
    """

    TEMPERATURE = 0.1

    def __init__(self, affinity: str = "cosine") -> None:
        super().__init__()
        require_known("similarity: ", [affinity], ("cosine", "energy", None))
        self.affinity = affinity
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the attended map, of the same shape, and A (B, C, C) float32."""
        nodes = x.flatten(2).transpose(1, 2)  # (B, H W, C); no copy where x is channels-last
        with torch.autocast(x.device.type, enabled=False):
            features = nodes.float()
            energy = torch.bmm(features.transpose(1, 2), features)
            if self.affinity == "cosine":
                norms = energy.diagonal(dim1=1, dim2=2).clamp_min(1e-12).rsqrt()
                energy = energy * norms[:, :, None] * norms[:, None, :] / self.TEMPERATURE
            affinity = torch.softmax(energy.amax(2, keepdim=True) - energy, 2)
        attended = torch.baddbmm(nodes, nodes, (self.gamma * affinity).to(nodes.dtype).transpose(1, 2))
        return attended.transpose(1, 2).unflatten(2, x.shape[2:]), affinity


class GraphReasoning(nn.Module):
    """Messages between N = H W local nodes and their mean, the global node: X + g1 LL + g2 GL + g3 LG.

    local -> local is dot-product attention; since its weights sum to one, g (affine) is applied to the
    weighted mean of the nodes. global -> local has one key, so that its attention is 1; local -> global has
    one query, whose answer every node receives. Both equal N x N attention over a broadcast mean, in O(N).

    Two deviations from the paper, which `plain` leaves out, keep it stable (docs/experiments.md): products
    are divided by the square root of theta's width, and each message is normalised over its channels, so
    that a gamma is the size of its message.
    """

    def __init__(self, channels: int, messages: str = "normalised") -> None:
        super().__init__()
        require_known("graph: ", [messages], ("normalised", "plain", None))
        inner = channels // 16
        self.plain = messages == "plain"
        self.scale = 1.0 if self.plain else inner ** -0.5
        self.local_theta = nn.Linear(channels, inner)
        self.local_phi = nn.Linear(channels, inner)
        self.local_g = nn.Linear(channels, channels)
        self.global_g = nn.Linear(channels, channels)
        self.readout_theta = nn.Linear(channels, inner)
        self.readout_phi = nn.Linear(channels, inner)
        self.readout_g = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(3))
        for layer in self.children():
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        nodes = x.flatten(2).transpose(1, 2)  # (B, N, C); no copy where x is channels-last
        mean = nodes.mean(1)  # (B, C)
        # fused kernels of attention want a dimension of heads: (B, 1, N, ...)
        heads = (each[:, None] for each in (self.local_theta(nodes), self.local_phi(nodes), nodes))
        attended = F.scaled_dot_product_attention(*heads, scale=self.scale)[:, 0]
        local = self.normalised(self.local_g(attended))
        from_mean = self.normalised(self.global_g(mean))
        keys = self.readout_phi(nodes)
        products = torch.einsum("bd,bnd->bn", self.readout_theta(mean), keys)
        weights = torch.softmax(self.scale * products.float(), 1).to(nodes.dtype)
        from_nodes = self.normalised(self.readout_g(torch.einsum("bn,bnc->bc", weights, nodes)))
        shared = self.gamma[1] * from_mean + self.gamma[2] * from_nodes
        nodes = nodes + (self.gamma[0] * local + shared[:, None]).to(nodes.dtype)
        return nodes.transpose(1, 2).unflatten(2, x.shape[2:])

    def normalised(self, message: Tensor) -> Tensor:
        """(..., C) -> the same, of mean 0 and variance 1 over its channels unless `plain`."""
        return message if self.plain else F.layer_norm(message, message.shape[-1:])


class CGRNet(TwoStream):
    """The two-stream network with modality similarity behind the streams, graph reasoning behind stage 2."""

    def add_parts(self, backbone: Backbone, similarity: str | None = "cosine",
                  graph: str | None = "normalised") -> None:
        """similarity: the affinity of the similarity module; graph: the messages of graph reasoning; either
        is left out for None.
        """
        self.similarity = nn.ModuleDict({modality: ModalitySimilarity(similarity) for modality in MODALITIES
                                         if similarity})
        self.graph = GraphReasoning(backbone.width("layer2"), graph) if graph else None

    def join(self, maps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """The maps of each view -> one attended batch, and the affinities by view."""
        if not self.similarity:
            return super().join(maps)
        pairs = {name: self.similarity[self.method.views[name].modality](x) for name, x in maps.items()}
        x, _ = super().join({name: attended for name, (attended, _) in pairs.items()})
        return x, {"affinities": {name: affinity for name, (_, affinity) in pairs.items()}}

    def after(self, stage: str, x: Tensor, before: Tensor) -> Tensor:
        """Graph reasoning follows stage 2."""
        return self.graph(x) if stage == "layer2" and self.graph is not None else x


class StripedCGRNet(CGRNet, Striped):
    """CGRNet's modules in the network of `strong`."""

    def add_parts(self, backbone: Backbone, similarity: str | None = "cosine",
                  graph: str | None = "normalised", stripes: int = 3) -> None:
        """See `CGRNet.add_parts` and `Striped.add_parts`."""
        Striped.add_parts(self, backbone, stripes)
        CGRNet.add_parts(self, backbone, similarity, graph)


def same_views(*augment: str) -> dict[str, View]:
    """A view of each modality with the same augmentations."""
    return {modality: View(modality, augment) for modality in MODALITIES}


TRIPLET = Loss(1.0, {"margin": 0.3})
MODULES = {"similarity": "cosine", "graph": "normalised"}
NON_LOCAL = {"non_local": {"layer2": 2, "layer3": 3}}
STRONG_VIEWS = same_views("standard", "exchange", "erase")

METHODS = {
    "base": Method(TwoStream, losses={"id": Loss(), "triplet": TRIPLET}),
    "agw": Method(AGW, losses={"id": Loss(), "weighted_triplet": Loss()}, pooling="gem", parts=NON_LOCAL),
    "cgrnet": Method(CGRNet, losses={"id": Loss(), "triplet": Loss(2.0, {"margin": 0.3}),
                                     "similarity": Loss(10.0)},
                     own_stages=1, parts=MODULES),
    # Ye et al., ICCV 2021
    "caj": Method(AGW, losses={"id": Loss(), "squared_triplet": Loss()}, pooling="gem", parts=NON_LOCAL,
                  views={"visible": View("visible", ("standard", "erase")),
                         "exchanged": View("visible", ("standard", "exchanged", "erase")),
                         "infrared": View("infrared", ("standard", "erase"))}),
    # the part-based baseline of RLE (Tan et al., NeurIPS 2024) with GeM; a weight of 2 gives the whole map 1
    "strong": Method(Striped, losses={"id": Loss(2.0), "triplet": Loss(2.0, {"margin": 0.3})}, pooling="gem",
                     views=STRONG_VIEWS, parts={"stripes": 3}),
    "cgrnet-strong": Method(StripedCGRNet, losses={"id": Loss(2.0), "triplet": Loss(2.0, {"margin": 0.3}),
                                                   "similarity": Loss(10.0)},
                            own_stages=1, pooling="gem", views=STRONG_VIEWS, parts={**MODULES, "stripes": 3}),
    # Ye et al., ECCV 2020
    "ddag": Method(DDAG, losses={"id": Loss(), "triplet": TRIPLET, "part_id": Loss(), "graph": Loss()},
                   parts={"stripes": 3}, recipe={"epochs": 81}),
    # Zhang and Wang, CVPR 2023, as on SYSU-MM01
    "deen": Method(DEEN, losses={"id": Loss(), "triplet": TRIPLET,
                                 "centre_pairs": Loss(0.8, {"margin": 0.2}), "orthogonality": Loss(0.01)},
                   views=same_views("standard", "grey_both", "erase_large"), parts={"expand_after": 3},
                   recipe={"batch_size": 6, "img_h": 384, "img_w": 144, "schedule": "step-80",
                           "epochs": 151}),
    # Jiang et al., ECCV 2024, as on SYSU-MM01
    "dns": Method(DNS, losses={"id": Loss(), "circle": Loss(1.0, {"margin": 0.45, "gamma": 64.0}),
                               "alignment": Loss(0.2), "distillation": Loss(1.0, {"rate": 0.2})},
                  own_stages=2, pooling="gem",
                  views={"visible": View("visible", ("standard", "exchange", "erase_twice")),
                         "infrared": View("infrared", ("standard", "erase_twice"))},
                  recipe={"batch_size": 6, "lr": 0.2, "schedule": "linear", "epochs": 100}),
    # Liu et al., TMM 2020, as on SYSU-MM01
    "hct": Method(HCT, losses={"part_id": Loss(), "hetero_center": TRIPLET, "part_hetero_center": TRIPLET},
                  own_stages=1, pooling="gem", parts={"stripes": 6, "width": 256, "power": 3.0},
                  recipe={"batch_size": 6, "num_pos": 8, "epochs": 61}),
}


def build_network(method: str | Method, arch: str, num_classes: int,
                  weights: dict[str, Tensor] | None = None) -> TwoStream:
    """The network of a row of METHODS, given by its name or itself, on one of BACKBONES.

    weights: a torchvision state dict of the backbone, None for a random start.
    """
    method = METHODS[method] if isinstance(method, str) else method
    return method.network(method, arch, num_classes, weights)


# ---------------------------------------------------------------------------------------- changes and checks
# fields that `--set` may change beside parts and losses, and their values
FIELDS = {"own_stages": tuple(range(len(STAGES) + 1)), "pooling": ("average", "gem")}
READERS = {int: int, float: float, bool: {"True": True, "False": False}.__getitem__,
           NoneType: {"None": None}.__getitem__, str: str}  # the last, as any text is one


def override(method: Method, assignments: Sequence[str]) -> Method:
    """A row with the fields that `--set FIELD=VALUE ...` changes.

    FIELD is `own_stages`, `pooling`, one of the row's `parts`, `losses.NAME` (VALUE: a weight, also of a loss
    that the row lacks; the name of a loss that takes its place; None to leave it out) or
    `losses.NAME.PARAMETER`, of which `weight` is one. Raises `UserError` for what there is not.
    """
    for assignment in assignments:
        name, where = assignment.partition("=")[0], f"--set {assignment}: "
        if name.startswith("losses."):
            method = replace(method, losses=override_losses(method.losses, assignment))
            continue
        parts = keywords(method.network.add_parts)
        require_known(where, [name], [*FIELDS, *parts, "losses.NAME"])
        if name in FIELDS:
            value = parse(assignment, type(FIELDS[name][0]))
            require_known(where, [value], FIELDS[name])
            method = replace(method, **{name: value})
        else:
            method = replace(method, parts={**method.parts, name: parse(assignment, parts[name])})
    return method


def override_losses(losses: Mapping[str, Loss], assignment: str) -> dict[str, Loss]:
    """The losses of a row as one assignment to `losses.NAME` or `losses.NAME.PARAMETER` changes them."""
    where = f"--set {assignment}: "
    _, name, *parameter = assignment.partition("=")[0].split(".", 2)
    value = None if parameter else parse(assignment, float | None | str)
    adds = isinstance(value, float)
    require_known(f"{where}losses.", [name], LOSSES if adds else losses)
    loss = losses.get(name, Loss())
    if parameter:
        kinds = {"weight": float, **keywords(LOSSES[name])}
        require_known(f"{where}losses.{name}.", parameter, kinds)
        value = parse(assignment, kinds[parameter[0]])
    if adds or parameter == ["weight"]:
        return {**losses, name: replace(loss, weight=value)}
    if parameter:
        return {**losses, name: replace(loss, parameters={**loss.parameters, parameter[0]: value})}
    if value is None:
        if len(losses) == 1:
            raise UserError(f"{where}no other loss is left; one expected")
        return {other: own for other, own in losses.items() if other != name}
    require_known(where, [value], LOSSES)
    shared = {word: own for word, own in loss.parameters.items() if word in keywords(LOSSES[value])}
    return {value if other == name else other: Loss(loss.weight, shared) if other == name else own
            for other, own in losses.items()}


def check_method(name: str, method: Method) -> None:
    """Raise `UserError` for a word in a row that nobody knows."""
    where = f"method {name}: "
    require_known(f"{where}losses: ", method.losses, LOSSES)
    for loss_name, loss in method.losses.items():
        require_known(f"{where}losses.{loss_name}: ", loss.parameters, keywords(LOSSES[loss_name]))
    for field, known in FIELDS.items():
        require_known(f"{where}{field}: ", [getattr(method, field)], known)
    require_known(f"{where}parts: ", method.parts, keywords(method.network.add_parts))
    for view_name, view in method.views.items():
        require_known(f"{where}views.{view_name}: ", [view.modality], MODALITIES)
        require_known(f"{where}views.{view_name}: ", view.augment, [*AUGMENTATIONS, *COMBINED])


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a loss, or of `add_parts`, and their types: all but the first two."""
    names = list(inspect.signature(function).parameters)[2:]
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)
    return {name: hints.get(name, float) for name in names}


def parse(assignment: str, kind: Any) -> Any:
    """The value of FIELD=VALUE as a type, or as one of a union of types; `UserError` where it is none."""
    text = assignment.partition("=")[2]
    kinds = get_args(kind) or (kind,)
    for each in READERS if text else ():
        if each in kinds:
            with contextlib.suppress(KeyError, ValueError):
                return READERS[each](text)
    expected = " or ".join(each.__name__.replace("NoneType", "None") for each in kinds)
    raise UserError(f"--set {assignment}: {text!r} found, {expected} expected")
