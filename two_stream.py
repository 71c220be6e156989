"""The two-stream network that every method begins from, and what a method is: a row of METHODS (model.py)."""
from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones import BACKBONES, STAGES, Backbone, build_backbone
from datasets.types import MODALITIES, View
from utils import UserError

GAMMA_RATES = {"sgd": 0.02, "adam": 1.0}  # see `TwoStream.rates`
BACKBONE = r"streams\.|shared\."  # names of the backbone's parameters


@dataclass(frozen=True)
class Loss:
    """One loss of a method: its weight in the sum, and the parameters of its entry in loss.LOSSES."""

    weight: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What one method trains: the network, the losses, and the views that the network is given.

    own_stages: number of stages that each modality has for itself, behind the stem. pooling: "average" or
    "gem". views: the inputs by name; test images go through the view of their modality's name. parts: keyword
    arguments of `network.add_parts`. recipe: defaults of train.py's flags, as the authors trained.
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

    feats: (B, D) float32 after pooling; neck: (B, D) float32 after BNNeck; logits: (B, C) float32.
    stripes: the logits of each stripe. Where there are S stripes, feats and neck hold the D / (1 + S)
    features of the whole map, then those of each stripe, and `logits` are those of the whole map.
    extras: by name, what single losses of a method read beside these.
    views: the modality of each view, in the order of the images. copies: maps of one image (1 but for a
    method that makes more); maps of all views come first, then their second copies, and so on.
    """

    feats: Tensor
    neck: Tensor
    logits: Tensor
    stripes: tuple[Tensor, ...] = ()
    extras: Mapping[str, Any] = {}
    views: Mapping[str, str] = {}
    copies: int = 1

    def extra(self, name: str, loss: str) -> Any:
        """One of the extras; raises `UserError` where the network of a loss does not give it."""
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
    its modules in `add_parts`, whose keyword arguments are the `parts` of its row. Where these do not reach,
    it may override `add_head`, `run_stage`, `join` and `rates`. dim: size of either feature in training, in
    testing `copies` times that. linear: whether the features are affine in the last maps if the pooling is
    (retrieval/evidence.py).
    """

    linear = True
    copies = 1
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
        self.add_head(backbone.width("layer4"), num_classes)

    def add_parts(self, backbone: Backbone) -> None:
        """Make a method's own modules; the random numbers of a seed go to them before the head."""

    def add_head(self, width: int, num_classes: int, parts: int = 1) -> None:
        """Make BNNeck and a classifier without bias, for each of some parts of a feature.

        BatchNorm treats each feature by itself, so that one `bottleneck` is the BNNeck of all parts;
        `classifier` holds their classifiers one after another.
        """
        self.dim = parts * width
        self.bottleneck = nn.BatchNorm1d(self.dim)
        self.bottleneck.bias.requires_grad_(False)
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
        """What follows a stage: its maps -> the next stage's input. before: the stage's own input.

        It may return more maps than images: whole copies of the batch, one behind the other.
        """
        return x

    def embed(self, maps: Tensor) -> Output:
        """The last maps (B, D, H, W) float32 -> features, neck and logits."""
        feats = pool(maps, self.method.pooling)
        neck = self.bottleneck(feats)
        return Output(feats, neck, self.classifier(neck))

    def rates(self, pretrained: bool, optim: str) -> dict[str, float]:
        """Factors on the learning rate by the beginning of a parameter's name, a regular expression; the
        first that fits counts.

        A pretrained backbone learns at a tenth of the rate, a random one at all of it. A gamma's gradient is
        a sum over all of its message, so that SGD at the full rate takes it from 0 to 0.6 within two epochs;
        it learns at a fiftieth (docs/experiments.md). Adam, whose steps do not grow with the gradient, needs
        no less.
        """
        return {BACKBONE: 0.1 if pretrained else 1.0, r".*gamma$": GAMMA_RATES[optim], "": 1.0}

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


def pool(x: Tensor, kind: str, power: float = 3.0) -> Tensor:
    """(B, C, H, W) float32 -> (B, C): mean, or generalised mean (GeM, Radenovic et al., TPAMI 2019).

    The constant of 1e-12 within the root is that of AGW.
    """
    return x.mean((2, 3)) if kind == "average" else (x.pow(power).mean((2, 3)) + 1e-12).pow(1 / power)
