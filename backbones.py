"""The backbones of a two-stream network, one row of `BACKBONES` each, and where their first weights come
from.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import UserError, one_line

STAGES = ("layer1", "layer2", "layer3", "layer4")  # our names of the four stages, in METHODS and in state dicts
Parts = tuple[dict[str, nn.Module], dict[str, nn.Module]]


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision, cut into a stem and four stages.

    split: cuts torchvision's network into the named modules of the stem and the modules of `STAGES`, and sets
    the stride of the last stage to 1. widths: channels of each stage's output. head: the prefix of its
    classifier's keys.
    """

    split: Callable[[nn.Module], Parts]
    widths: tuple[int, int, int, int]
    head: str = "fc."

    def width(self, stage: str) -> int:
        """Channels of one stage's output."""
        return self.widths[STAGES.index(stage)]


def split_resnet(network: nn.Module) -> Parts:
    """A ResNet: stem = conv1, bn1, relu, maxpool."""
    first = network.layer4[0]
    for layer in (first.conv1, first.conv2, first.downsample[0]):
        layer.stride = (1, 1)
    stem = {name: getattr(network, name) for name in ("conv1", "bn1", "relu", "maxpool")}
    return stem, {stage: getattr(network, stage) for stage in STAGES}


def split_mobilenet_v2(network: nn.Module) -> Parts:
    """MobileNetV2: stem = the first convolution and the block without expansion, stages of 24, 32, 96, 1,280
    channels.
    """
    blocks = network.features
    blocks[14].conv[1][0].stride = (1, 1)
    ends = (2, 4, 7, 14, 19)
    stages = {stage: nn.Sequential(*blocks[first:last]) for stage, first, last in zip(STAGES, ends, ends[1:])}
    return {"conv": blocks[0], "block": blocks[1]}, stages


BACKBONES = {
    "resnet50": Backbone(split_resnet, (256, 512, 1024, 2048)),
    "resnet18": Backbone(split_resnet, (64, 128, 256, 512)),
    "mobilenet_v2": Backbone(split_mobilenet_v2, (24, 32, 96, 1280), head="classifier."),
}


def build_backbone(arch: str, weights: dict[str, Tensor] | None = None) -> Parts:
    """The stem's and the stages' modules of a backbone.

    weights: a torchvision state dict, whose classifier is left out; None for a random start. Raises KeyError
    for weights that lack a layer, RuntimeError for weights of another shape.
    """
    import torchvision  # takes as long to import as torch itself: only where a network is built
    network = getattr(torchvision.models, arch)(weights=None)
    if weights is not None:
        network.load_state_dict({name: weights[name] for name in needed(network, arch)}, strict=False)
    return BACKBONES[arch].split(network)


def needed(network: nn.Module, arch: str) -> list[str]:
    """The keys that a state dict must hold for a backbone: all but its classifier and the counts of batches."""
    return [name for name in network.state_dict()
            if not name.startswith(BACKBONES[arch].head) and not name.endswith("num_batches_tracked")]


def weight_shapes(arch: str) -> dict[str, torch.Size]:
    """The shapes of the weights that a torchvision state dict of a backbone must hold, by key."""
    import torchvision
    with torch.device("meta"):
        network = getattr(torchvision.models, arch)(weights=None)
    state = network.state_dict()
    return {name: state[name].shape for name in needed(network, arch)}


def fetch_imagenet(arch: str) -> Path:
    """The path of torchvision's ImageNet-1k V1 weights, fetched into torch's cache unless they are there.

    Raises `UserError` that says where to put which file.
    """
    import torchvision
    enum = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(enum.url).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(enum.url, str(path), hash_prefix=path.stem.split("-")[-1])
        except (OSError, RuntimeError) as error:
            raise UserError(f"--pretrained imagenet: {enum.url} cannot be fetched ({one_line(error)[:120]}); "
                            f"put that file at {path}, or use --pretrained FILE or --pretrained "
                            "none") from None
    return path
