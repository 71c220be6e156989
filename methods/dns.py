"""DNS: attention that shifts maps, and a common space for training (Jiang et al., ECCV 2024)."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import Backbone
from two_stream import Output, TwoStream


class SpaceShift(nn.Module):
    """HSS: attention over rows times attention over columns, from a map that is shifted by its maxima."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // 32)
        self.reduce = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner),
                                    nn.Hardswish())
        self.rows = nn.Conv2d(inner, channels, 1, bias=False)
        self.columns = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        shift = torch.softmax(x.amax(3, keepdim=True), 2) * torch.softmax(x.amax(2, keepdim=True), 3)
        shifted = x + shift
        means = torch.cat([shifted.mean(3), shifted.mean(2)], 2)[..., None]  # (B, C, H + W, 1)
        rows, columns = self.reduce(means).split(x.shape[2:], 2)
        return x * torch.sigmoid(self.rows(rows)) * torch.sigmoid(self.columns(columns)).transpose(2, 3)


class CommonSpace(nn.Module):
    """CSS: features (B, D), shifted by their softmax, through two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.01),
                                 nn.Linear(4 * dim, dim), nn.Dropout(0.01))

    def forward(self, feats: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return self.mlp(feats + torch.softmax(feats, 1))


class DNS(TwoStream):
    """Space shifts behind stages 3 and 4, GeM, and in training the features of the common space."""

    neck_shift = True

    def add_parts(self, backbone: Backbone) -> None:
        """Make the shifts and the common space."""
        self.shifts = nn.ModuleDict({stage: SpaceShift(backbone.width(stage))
                                     for stage in ("layer3", "layer4")})
        self.common = CommonSpace(backbone.width("layer4"))

    def after(self, stage: str, x: Tensor, before: Tensor) -> Tensor:
        """Shifts follow stages 3 and 4."""
        return self.shifts[stage](x) if stage in self.shifts else x

    def embed(self, maps: Tensor) -> Output:
        """The last maps -> features, neck and logits; in training the common features (B, D) as an extra."""
        output = super().embed(F.relu(maps))
        return output._replace(extras={"common": self.common(maps.mean((2, 3)))}) if self.training else output

    def rates(self, pretrained: bool, optim: str) -> dict[str, float]:
        """The published factors beside a pretrained backbone."""
        own = {r"streams\.|shifts\.|common\.": 0.1, r"shared\.layer3\.": 0.2, r"shared\.layer4\.": 0.25}
        return {**(own if pretrained else {}), **super().rates(pretrained, optim)}
