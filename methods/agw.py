"""AGW: non-local attention behind the last blocks of a stage (Ye et al., TPAMI 2021)."""
from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from backbones import STAGES, Backbone
from two_stream import BACKBONE, TwoStream, require_known


def projection(channels: int, outputs: int) -> nn.Sequential:
    """A 1 x 1 convolution and a BatchNorm that starts at zero."""
    layers = nn.Sequential(nn.Conv2d(channels, outputs, 1), nn.BatchNorm2d(outputs))
    nn.init.zeros_(layers[1].weight)
    nn.init.zeros_(layers[1].bias)
    return layers


class NonLocal(nn.Module):
    """The non-local block of AGW: theta, phi and g to one channel, products over N places.

    Without a softmax the N x N matrix has rank one, so that its product with g is taken in O(N). The last
    BatchNorm starts at zero: the block is the identity then.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.W = projection(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        strength = (self.phi(x).float() * self.g(x).float()).mean((2, 3), keepdim=True)
        return self.W((self.theta(x).float() * strength).to(x.dtype)) + x


class AGW(TwoStream):
    """The two-stream network with non-local blocks."""

    def add_parts(self, backbone: Backbone, non_local: Mapping[str, int] | None = None) -> None:
        """non_local: how many of a stage's last blocks are each followed by a non-local block, by stage."""
        non_local = non_local or {}
        require_known("non_local: ", non_local, STAGES)
        blocks = {**dict(self.streams["visible"].named_children()), **self.shared}
        self.non_local = nn.ModuleDict({stage: nn.ModuleList(
            NonLocal(backbone.width(stage)) for _ in range(min(count, len(blocks[stage]))))
            for stage, count in non_local.items()})

    def run_stage(self, stage: str, blocks: nn.Module, x: Tensor) -> Tensor:
        """Run the blocks of one stage, its last ones with a non-local block behind each."""
        attached = self.non_local[stage] if stage in self.non_local else ()
        first = len(blocks) - len(attached)
        for index, block in enumerate(blocks):
            x = block(x)
            if index >= first:
                x = attached[index - first](x)
        return x

    def rates(self, pretrained: bool, optim: str) -> dict[str, float]:
        """Non-local blocks learn at a tenth beside a pretrained or a random backbone, as published.

        They multiply three of their inputs' projections, so that at the full rate they outgrow the running
        statistics behind them within an epoch, and features overflow in testing.
        """
        others = super().rates(pretrained, optim)
        return {BACKBONE: others[BACKBONE], r"non_local\.": 0.1, **others}
