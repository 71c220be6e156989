"""The two-stream network that every method begins from, and what a method is: a row of METHODS (model.py)."""
from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones import BACKBONES, STAGES, Backbone, build_backbone
from datasets.types import MODALITIES, View
from utils import UserError

BACKBONE = r"streams\.|shared\."  # names of the backbone's parameters


@dataclass(frozen=True)
class Loss:
    """One loss of a method: its weight in the sum, and the parameters of its entry in loss.LOSSES."""

    weight: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of METHODS: the network, the losses, and the views that the network is given.

    own_stages: stages that each modality has for itself, behind the stem. pooling: "average" or "gem". views:
    the inputs by name; test images go through the view of their modality's name. parts: keyword arguments of
    `network.add_parts`. recipe: defaults of train.py's flags, as the authors trained.
    """

    network: type[TwoStream]
    losses: Mapping[str, Loss]
    own_stages: int = 0
    pooling: str = "average"
    views: Mapping[str, View] = field(default_factory=lambda: {name: View(name) for name in MODALITIES})
    parts: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> dict[str, int]:
        """The size of the recipe's images, as flags, where it says one."""
        return {flag: self.recipe[flag] for flag in ("img_h", "img_w") if flag in self.recipe}


class Output(NamedTuple):
    """What the network gives for B maps of its images, view after view.

    feats: (B, D) float32 after pooling; neck: (B, D) float32 after BNNeck; logits: (B, C) float32. Where
    there are S stripes, feats and neck hold the D / (1 + S) features of the whole map, then those of each
    stripe; `logits` are those of the whole map, `stripes` those of each stripe. extras: by name, what single
    losses read beside these. views: the modality of each view, in the order of the images. copies: maps of
    one image; maps of all views come first, then their second copies, and so on.
    """

    feats: Tensor
    neck: Tensor
    logits: Tensor
    stripes: tuple[Tensor, ...] = ()
    extras: Mapping[str, Any] = {}
    views: Mapping[str, str] = {}
    copies: int = 1

    def extra(self, name: str, loss: str) -> Any:
        """One of the extras, or `further maps`: the features of the first map of each image, and of others.

        Raises `UserError` where the network does not give what a loss reads.
        """
        if name == "further maps" and self.copies > 1:
            return self.feats.chunk(self.copies)
        if name not in self.extras:
            raise UserError(f"losses.{loss}: the network of this method gives no {name}; leave the loss out "
                            f"(--set losses.{loss}=None)")
        return self.extras[name]

    def by_view(self, values: Tensor) -> dict[str, Tensor]:
        """Split the values of all maps, (B, ...), into those of each view, copy after copy."""
        split = values.unflatten(0, (self.copies, len(self.views), -1)).transpose(0, 1).flatten(1, 2)
        return dict(zip(self.views, split))

    def by_modality(self, values: Tensor) -> dict[str, Tensor]:
        """Split the values of all maps, (B, ...), into those of each modality, view after view."""
        views = self.by_view(values)
        return {modality: torch.cat([views[name] for name, own in self.views.items() if own == modality])
                for modality in dict.fromkeys(self.views.values())}


class TwoStream(nn.Module):
    """A backbone with first layers for each modality, and BNNeck (Luo et al., TMM 2020) behind the pooling.

    A method overrides `after` (what follows a stage) and `embed` (maps -> features, neck, logits), and makes
    its modules in `add_parts`, whose keyword arguments are the `parts` of its row; where these do not reach,
    `add_head`, `run_stage`, `join` and `rates`. dim: size of either feature, in testing `copies` times that.
    """

    linear = True  # are features affine in the last maps if the pooling is? (retrieval/evidence.py)
    copies = 1
    neck_shift = False  # does BNNeck learn a shift?
    head = ("bottleneck", "classifier")  # the modules of `embed`, which computes in float32

    def __init__(self, method: Method, arch: str, num_classes: int,
                 weights: dict[str, Tensor] | None = None) -> None:
        """weights: a torchvision state dict of the backbone (its classifier is left out), None for a random
        start.
        """
        super().__init__()
        self.method = method
        backbone = BACKBONES[arch]
        stem, stages = build_backbone(arch, weights)
        own = {**stem, **{stage: stages[stage] for stage in STAGES[:method.own_stages]}}
        self.streams = nn.ModuleDict({modality: nn.Sequential(OrderedDict(copy.deepcopy(own)))
                                      for modality in MODALITIES})
        self.shared = nn.ModuleDict({stage: stages[stage] for stage in STAGES[method.own_stages:]})
        self.add_parts(backbone, **method.parts)
        self.add_head(backbone.width(["layer4", *self.shared][-1]), num_classes)

    def add_parts(self, backbone: Backbone) -> None:
        """Make a method's own modules; the random numbers of a seed go to them before the head."""

    def add_head(self, width: int, num_classes: int, parts: int = 1) -> None:
        """Make BNNeck and a classifier without bias; `classifier` holds those of all parts of a feature, one
        after another.
        """
        self.dim = parts * width
        self.bottleneck = nn.BatchNorm1d(self.dim)
        self.bottleneck.bias.requires_grad_(self.neck_shift)
        self.classifier = nn.Linear(width, parts * num_classes, bias=False)
        nn.init.normal_(self.bottleneck.weight, 1.0, 0.01)
        nn.init.normal_(self.classifier.weight, 0, 0.001)

    def forward(self, visible: Tensor | None = None, infrared: Tensor | None = None,
                **others: Tensor) -> Output:
        """Normalised images of one view or of several, (B, 3, height, width) each, by name, in one pass."""
        given = {"visible": visible, "infrared": infrared, **others}
        views = {name: view.modality for name, view in self.method.views.items()
                 if given.get(name) is not None}
        maps, extras = self.feature_maps({name: given[name] for name in views})
        with torch.autocast(maps.device.type, enabled=False):
            output = self.embed(maps.float())
        copies = len(output.logits) // sum(len(given[name]) for name in views)
        return Output(output.feats, output.neck, output.logits, output.stripes,  # not by _replace, which
                      {**extras, **output.extras}, views, copies)  # torch.compile of torch 2.6 does not know

    def feature_maps(self, images: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Images by view, in the order of the views -> the maps of the last stage, (B, D, H, W), and the
        extras of `join`.
        """
        x, extras = self.join({name: self.run(self.streams[self.method.views[name].modality], given)
                               for name, given in images.items()})
        return self.run(self.shared, x), extras

    def join(self, maps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """The maps of each view behind its modality's stream -> one batch, and extras of the output."""
        return torch.cat(list(maps.values())) if len(maps) > 1 else next(iter(maps.values())), {}

    def run(self, modules: nn.Module, x: Tensor) -> Tensor:
        """Run modules one after the other; what follows a stage follows it."""
        for name, module in modules.named_children():
            x = self.after(name, self.run_stage(name, module, x), x) if name in STAGES else module(x)
        return x

    def run_stage(self, stage: str, blocks: nn.Module, x: Tensor) -> Tensor:
        """Run the blocks of one stage."""
        return blocks(x)

    def after(self, stage: str, x: Tensor, before: Tensor) -> Tensor:
        """The maps of a stage -> the next stage's input, perhaps several copies of the batch, one behind the
        other. before: the stage's own input.
        """
        return x

    def embed(self, maps: Tensor) -> Output:
        """The last maps (B, D, H, W) float32 -> features, neck and logits."""
        feats = pool(maps, self.method.pooling)
        neck = self.bottleneck(feats)
        return Output(feats, neck, self.classifier(neck))

    def rates(self, pretrained: bool, optim: str) -> dict[str, float]:
        """Factors on the learning rate by patterns of a parameter's name; the first that fits counts.

        A gamma's gradient is a sum over all of its message: SGD at the full rate takes it from 0 to 0.6
        within two epochs (docs/experiments.md). Adam's steps do not grow with the gradient.
        """
        gamma = 0.02 if optim == "sgd" else 1.0
        return {BACKBONE: 0.1 if pretrained else 1.0, r".*gamma$": gamma, "": 1.0}

    def parameter_groups(self, lr: float, pretrained: bool, optim: str = "sgd") -> list[dict]:
        """Optimiser groups, one for each of `rates` that any parameter has."""
        rates = self.rates(pretrained, optim)
        groups: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in rates}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[next(pattern for pattern in rates if re.match(pattern, name))].append(parameter)
        return [{"params": parameters, "lr": lr * rates[pattern]}
                for pattern, parameters in groups.items() if parameters]


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
    2019), of the whole map, then of each horizontal stripe from the top.

    Stripes overlap by a row where they do not divide the map. The 1e-12 within the root is AGW's.
    """
    powers = x if kind == "average" else x.pow(power)
    means = powers.mean((2, 3))
    if stripes:
        rows = F.adaptive_avg_pool2d(powers, (stripes, 1)).squeeze(3)  # (B, C, stripes)
        means = torch.cat([means, rows.transpose(1, 2).flatten(1)], 1)
    return means if kind == "average" else (means + 1e-12).pow(1 / power)


def require_known(where: str, words: Iterable[Any], known: Iterable[Any]) -> None:
    """Raise `UserError` that names the first of some words that is not among the known ones."""
    for word in words:
        if word not in known:
            raise UserError(f"{where}{word} found, one of {', '.join(map(str, known))} expected")
