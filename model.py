"""Two-stream networks for visible-infrared re-identification, one row of METHODS each."""
from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones import BACKBONES, STAGES, build_backbone
from datasets.types import MODALITIES, View

GAMMA_RATES = {"sgd": 0.02, "adam": 1.0}  # see `TwoStream.parameter_groups`


@dataclass(frozen=True)
class Loss:
    """One loss of a method: its weight in the sum, and what its entry in loss.LOSSES takes."""

    weight: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What one method trains: the network, the views that it is given, and the losses.

    own_stages: stages that each modality keeps to itself after the stem. stripes: horizontal parts of the map
    that are pooled beside the whole. non_local: (stage, number of its last blocks that a non-local block
    follows). Each modality has a view of its own name, through which its test images go too.
    """

    losses: Mapping[str, Loss]
    own_stages: int = 0
    pooling: str = "average"  # or "gem"
    stripes: int = 0
    non_local: tuple[tuple[str, int], ...] = ()
    similarity: str | None = None  # affinity of the modality similarity module
    graph: str | None = None  # messages of graph reasoning: "normalised" or "plain"
    views: Mapping[str, View] = field(default_factory=lambda: {name: View(name) for name in MODALITIES})


STRONG = ("standard", "exchange", "erase")
STRONG_VIEWS = {modality: View(modality, STRONG) for modality in MODALITIES}
CAJ_VIEWS = {"visible": View("visible", ("standard", "erase")),
             "exchanged": View("visible", ("standard", "exchanged", "erase")),
             "infrared": View("infrared", ("standard", "erase"))}

METHODS = {
    "base": Method(losses={"id": Loss(), "triplet": Loss(1.0, {"margin": 0.3})}),
    "agw": Method(losses={"id": Loss(), "weighted_triplet": Loss()}, pooling="gem",
                  non_local=(("layer2", 2), ("layer3", 3))),
    "cgrnet": Method(losses={"id": Loss(), "triplet": Loss(2.0, {"margin": 0.3}), "similarity": Loss(10.0)},
                     own_stages=1, similarity="cosine", graph="normalised"),
    # Ye et al., ICCV 2021
    "caj": Method(losses={"id": Loss(), "squared_triplet": Loss()}, pooling="gem",
                  non_local=(("layer2", 2), ("layer3", 3)), views=CAJ_VIEWS),
    # the part-based baseline of RLE (Tan et al., NeurIPS 2024) with GeM; a weight of 2 gives the whole map 1
    "strong": Method(losses={"id": Loss(2.0), "triplet": Loss(2.0, {"margin": 0.3})}, pooling="gem",
                     stripes=3, views=STRONG_VIEWS),
    "cgrnet-strong": Method(losses={"id": Loss(2.0), "triplet": Loss(2.0, {"margin": 0.3}),
                                    "similarity": Loss(10.0)}, own_stages=1, pooling="gem", stripes=3,
                            similarity="cosine", graph="normalised", views=STRONG_VIEWS),
}


class Output(NamedTuple):
    """What the network gives for B images, view after view.

    feats: (B, D) float32 after pooling; neck: (B, D) float32 after BNNeck; logits: (B, C) float32;
    affinities: by view, (images of the view, K, K) float32, empty for a method without the similarity module;
    stripes: the logits of each stripe. Where there are S stripes, feats and neck hold the D / (1 + S)
    features of the whole map, then those of each stripe, and `logits` are those of the whole map.
    """

    feats: Tensor
    neck: Tensor
    logits: Tensor
    affinities: dict[str, Tensor]
    stripes: tuple[Tensor, ...] = ()


class ModalitySimilarity(nn.Module):
    """Channel attention of a modality: X + gamma A X; A (B, C, C) compares the channels of X (B, C, H, W).

    A is the row-wise softmax of max(E) - E (the channel attention of DANet, Fu et al., CVPR 2019), in float32
    also under autocast. `energy` takes E = X X^T as the paper does; a sum over thousands of positions, it
    saturates to one-hot rows that carry next to no gradient. `cosine`, the default, divides by the norms of
    both channels and by a temperature of 0.1. gamma starts at 0.
    """

    TEMPERATURE = 0.1

    def __init__(self, affinity: str = "cosine") -> None:
        super().__init__()
        if affinity not in ("cosine", "energy"):
            raise ValueError(f"affinity: {affinity!r} found, 'cosine' or 'energy' expected")
        self.affinity = affinity
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the attended map, of the same shape, and A (B, C, C) float32."""
        nodes = x.flatten(2).transpose(1, 2)  # (B, H W, C); no copy where x is channels-last
        with torch.autocast(x.device.type, enabled=False):
            affinity = self.compare_channels(nodes.float())
        attended = torch.baddbmm(nodes, nodes, (self.gamma * affinity).to(nodes.dtype).transpose(1, 2))
        return attended.transpose(1, 2).unflatten(2, x.shape[2:]), affinity

    def compare_channels(self, nodes: Tensor) -> Tensor:
        """(B, N, C) float32 -> A (B, C, C)."""
        energy = torch.bmm(nodes.transpose(1, 2), nodes)
        if self.affinity == "cosine":
            norms = energy.diagonal(dim1=1, dim2=2).clamp_min(1e-12).rsqrt()
            energy = energy * norms[:, :, None] * norms[:, None, :] / self.TEMPERATURE
        return torch.softmax(energy.amax(2, keepdim=True) - energy, 2)


class GraphReasoning(nn.Module):
    """Messages between N = H W local nodes and their mean, the global node: X + g1 LL + g2 GL + g3 LG.

    local -> local is dot-product attention; since its weights sum to one, g (affine) is applied to the
    weighted mean of the nodes. global -> local has one key, so that its attention is 1 and needs neither
    theta nor phi; local -> global has one query, whose answer every local node receives. Both cost O(N) and
    equal N x N attention over a broadcast mean. The gammas start at 0.

    Two deviations keep it stable (docs/experiments.md): products are divided by the square root of theta's
    width, and each message is normalised over its channels (to mean 0, variance 1), so that a gamma is the
    size of its message. `plain` leaves both out, as the paper does.
    """

    def __init__(self, channels: int, messages: str = "normalised", reduction: int = 16) -> None:
        super().__init__()
        if messages not in ("normalised", "plain"):
            raise ValueError(f"messages: {messages!r} found, 'normalised' or 'plain' expected")
        inner = channels // reduction
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
        local = self.normalised(self.local_to_local(nodes))
        from_mean = self.normalised(self.global_g(mean))
        from_nodes = self.normalised(self.readout_g(self.read_out(nodes, mean)))
        shared = self.gamma[1] * from_mean + self.gamma[2] * from_nodes
        nodes = nodes + (self.gamma[0] * local + shared[:, None]).to(nodes.dtype)
        return nodes.transpose(1, 2).unflatten(2, x.shape[2:])

    def normalised(self, message: Tensor) -> Tensor:
        """(..., C) -> the same, of mean 0 and variance 1 over its channels unless `plain`."""
        return message if self.plain else F.layer_norm(message, message.shape[-1:])

    def local_to_local(self, nodes: Tensor) -> Tensor:
        """(B, N, C) -> y_i = sum_j softmax_j(scale theta(x_i) . phi(x_j)) g(x_j), (B, N, C)."""
        queries, keys, values = self.local_theta(nodes), self.local_phi(nodes), nodes
        heads = (each[:, None] for each in (queries, keys, values))  # fused kernels want one: (B, 1, N, ...)
        return self.local_g(F.scaled_dot_product_attention(*heads, scale=self.scale)[:, 0])

    def read_out(self, nodes: Tensor, mean: Tensor) -> Tensor:
        """(B, N, C) nodes queried by their (B, C) mean -> the weighted mean of the nodes, (B, C)."""
        keys = self.readout_phi(nodes)
        products = torch.einsum("bd,bnd->bn", self.readout_theta(mean), keys)
        weights = torch.softmax(self.scale * products.float(), 1)
        return torch.einsum("bn,bnc->bc", weights.to(nodes.dtype), nodes)


class NonLocal(nn.Module):
    """The non-local block of AGW (Ye et al., TPAMI 2021): theta, phi and g to one channel, products over N.

    Without a softmax the N x N matrix has rank one, so that its product with g is taken in O(N). The last
    BatchNorm starts at zero: the block is the identity then.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.W[1].weight)
        nn.init.zeros_(self.W[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        strength = (self.phi(x).float() * self.g(x).float()).mean((2, 3), keepdim=True)
        return self.W((self.theta(x).float() * strength).to(x.dtype)) + x


class TwoStream(nn.Module):
    """A backbone with first layers for each modality, and BNNeck (Luo et al., TMM 2020) behind the pooling.

    BatchNorm treats each feature by itself, so that one `bottleneck` is the BNNeck of the whole map and of
    each stripe; `classifier` holds their classifiers one after another. dim: size of either feature. weights:
    a torchvision state dict of the backbone (its classifier is left out), None for a random start.
    """

    def __init__(self, method: str | Method, arch: str, num_classes: int,
                 weights: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.method = METHODS[method] if isinstance(method, str) else method
        backbone = BACKBONES[arch]
        stem, stages = build_backbone(arch, weights)
        own = {**stem, **{stage: stages[stage] for stage in STAGES[:self.method.own_stages]}}
        self.streams = nn.ModuleDict({modality: nn.Sequential(OrderedDict(copy.deepcopy(own)))
                                      for modality in MODALITIES})
        self.shared = nn.ModuleDict({stage: stages[stage] for stage in STAGES[self.method.own_stages:]})
        self.non_local = nn.ModuleDict({stage: nn.ModuleList(
            NonLocal(backbone.width(stage)) for _ in range(min(blocks, len(stages[stage]))))
            for stage, blocks in self.method.non_local})
        self.similarity = nn.ModuleDict({modality: ModalitySimilarity(self.method.similarity)
                                         for modality in MODALITIES if self.method.similarity})
        self.graph = (GraphReasoning(backbone.width("layer2"), self.method.graph) if self.method.graph
                      else None)
        parts, width = 1 + self.method.stripes, backbone.width("layer4")
        self.dim = parts * width
        self.bottleneck = nn.BatchNorm1d(self.dim)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, parts * num_classes, bias=False)
        nn.init.normal_(self.bottleneck.weight, 1.0, 0.01)
        nn.init.normal_(self.classifier.weight, 0, 0.001)

    def forward(self, visible: Tensor | None = None, infrared: Tensor | None = None,
                **others: Tensor) -> Output:
        """Normalised images of one view or of several, (B, 3, height, width) each, by name, in one pass."""
        x, affinities = self.feature_maps({"visible": visible, "infrared": infrared, **others})
        with torch.autocast(x.device.type, enabled=False):
            feats = pool(x.float(), self.method.pooling, self.method.stripes)
            neck = self.bottleneck(feats)
            logits, *stripes = self.classify(neck)
            return Output(feats, neck, logits, affinities, tuple(stripes))

    def feature_maps(self, given: Mapping[str, Tensor | None]) -> tuple[Tensor, dict[str, Tensor]]:
        """Images by view -> the maps of the last stage, (B, D, H, W), view after view, and the affinities."""
        maps, affinities = [], {}
        for name, view in self.method.views.items():
            if given.get(name) is None:
                continue
            x = self.streams[view.modality](given[name])
            if self.similarity:
                x, affinities[name] = self.similarity[view.modality](x)
            maps.append(x)
        x = torch.cat(maps) if len(maps) > 1 else maps[0]
        for stage in self.shared:
            x = self.run_stage(stage, x)
            if stage == "layer2" and self.graph is not None:
                x = self.graph(x)
        return x, affinities

    def classify(self, neck: Tensor) -> list[Tensor]:
        """The logits (B, C) of the whole map and of each stripe, from their features (B, D) after BNNeck."""
        parts = 1 + self.method.stripes
        return [F.linear(*part) for part in zip(neck.chunk(parts, 1), self.classifier.weight.chunk(parts))]

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        """One shared stage, with the non-local blocks that follow its last blocks."""
        blocks = self.shared[stage]
        attached = self.non_local[stage] if stage in self.non_local else ()
        first = len(blocks) - len(attached)
        for index, block in enumerate(blocks):
            x = block(x)
            if index >= first:
                x = attached[index - first](x)
        return x

    def parameter_groups(self, lr: float, pretrained: bool, optim: str = "sgd") -> list[dict]:
        """Optimiser groups: a pretrained backbone learns at a tenth of the rate, a random one at all of it.

        AGW's non-local blocks learn at a tenth beside either, as in its published code: they multiply three
        of their inputs' projections, so that at the full rate they outgrow the running statistics behind them
        within an epoch, and features overflow in testing. A gamma's gradient is a sum over all of its
        message, so that SGD at the full rate takes it from 0 to 0.6 within two epochs; it learns at a
        fiftieth (docs/experiments.md). Adam, whose steps do not grow with the gradient, needs no less.
        """
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "non_local": [], "gamma": [], "new": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                non_local = name.startswith("non_local.")
                backbone = name.startswith(("streams.", "shared.")) or (non_local and pretrained)
                groups["backbone" if backbone else "non_local" if non_local else
                       "gamma" if name.endswith("gamma") else "new"].append(parameter)
        rates = {"backbone": 0.1 if pretrained else 1.0, "non_local": 0.1,
                 "gamma": GAMMA_RATES[optim], "new": 1.0}
        return [{"params": parameters, "lr": lr * rates[kind]}
                for kind, parameters in groups.items() if parameters]


def folded(net: nn.Module) -> nn.Module:
    """A copy for inference whose BatchNorm2d are part of the convolutions before them, a pass less each."""
    net = copy.deepcopy(net).eval()
    for module in list(net.modules()):
        children = list(module.named_children())  # in our modules, their order is that of `forward`
        for (before, convolution), (behind, norm) in zip(children, children[1:]):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                setattr(module, before, fuse_conv_bn_eval(convolution, norm))
                setattr(module, behind, nn.Identity())
    return net


def pool(x: Tensor, kind: str, stripes: int = 0, power: float = 3.0) -> Tensor:
    """(B, C, H, W) float32 -> (B, (1 + stripes) C): mean, or generalised mean (GeM, Radenovic et al., TPAMI
    2019) with p = 3, of the whole map, then of each of its horizontal stripes from the top.

    The constant of 1e-12 within the root is that of AGW. As in RLE (Tan et al., NeurIPS 2024), parts are not
    normalised one by one: means over a map and over its stripes have one scale already. Stripes overlap by a
    row where they do not divide the map.
    """
    x = x if kind == "average" else x.pow(power)
    means = x.mean((2, 3))
    if stripes:
        rows = F.adaptive_avg_pool2d(x, (stripes, 1)).squeeze(3)  # (B, C, stripes)
        means = torch.cat([means, rows.transpose(1, 2).flatten(1)], 1)
    return means if kind == "average" else (means + 1e-12).pow(1 / power)
