"""DEEN: two more embeddings of each image, and attention between stages (Zhang and Wang, CVPR 2023).

Deviations of the published code from the paper are kept: no attention here has a softmax.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones import STAGES, Backbone
from methods.agw import projection
from two_stream import BACKBONE, Output, TwoStream, require_known
from utils import UserError


def thinned(x: Tensor, other: Tensor) -> Tensor:
    """Every n-th row and column of x, so that it has those of `other`."""
    step = -(-x.shape[2] // other.shape[2])
    return x[:, :, ::step, ::step]


class ChannelAttention(nn.Module):
    """CNL: channels of a stage's output (high) by channels of its input (low), added to the output."""

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(high, low, 1)
        self.phi, self.g = nn.Conv2d(low, low, 1), nn.Conv2d(low, low, 1)
        self.W = projection(low, high)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x (B, high, H, W), before (B, low, H', W') -> the shape of x."""
        queries, keys = self.theta(x).flatten(2), self.phi(thinned(before, x)).flatten(2)
        energy = queries @ keys.transpose(1, 2) / keys.shape[1]  # (B, low, low)
        y = (energy @ self.g(before).flatten(2)).unflatten(2, before.shape[2:])
        return self.W(thinned(y, x)) + x


class PositionAttention(nn.Module):
    """PNL: positions of a stage's output by positions of its input, added to the output.

    The published code reads (low / 2, N) maps as (low, N / 2): a node is a place of the upper half of the
    image together with its counterpart in the lower half. Without a softmax, the products are taken in O(N).
    """

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(high, low // 2, 1)
        self.phi, self.g = nn.Conv2d(low, low // 2, 1), nn.Conv2d(low, low // 2, 1)
        self.W = projection(low // 2, high)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x (B, high, H, W), before (B, low, H', W') -> the shape of x; numbers of places must be even."""
        queries, keys, values = map(self.halves, (self.theta(x), self.phi(before), self.g(before)))
        y = values @ keys.transpose(1, 2) / keys.shape[2] @ queries  # (B, low, N / 2)
        return self.W(y.reshape(len(x), -1, *x.shape[2:])) + x

    @staticmethod
    def halves(x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 C, H W / 2)."""
        if x.shape[2] * x.shape[3] % 2:
            raise UserError(f"deen: a map of {x.shape[2]} x {x.shape[3]} places found, an even number "
                            "expected; give another --img_h, such as a multiple of 32")
        return x.flatten(2).reshape(len(x), 2 * x.shape[1], -1)


class Expansion(nn.Module):
    """DEE: an image's map, and two more that dilated convolutions make of it: three copies of the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(nn.ModuleList(
            nn.Conv2d(channels, channels // 4, 3, padding=dilation, dilation=dilation, bias=False)
            for dilation in (1, 2, 3)) for _ in range(2))
        self.restore = nn.ModuleList(nn.Conv2d(channels // 4, channels, 1) for _ in range(2))
        self.dropout = nn.Dropout(0.01)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (3 B, C, H, W)."""
        more = [restore(torch.relu(sum(layer(x) for layer in layers) / 3))
                for layers, restore in zip(self.dilated, self.restore)]
        return self.dropout(torch.cat([x, *more]))


class DEEN(TwoStream):
    """Attention behind the first stages, and the expansion behind the last of them.

    In testing the features of an image's three maps, each of unit length, are one feature side by side: its
    cosine is the mean of the three.
    """

    copies = 3

    def add_parts(self, backbone: Backbone, expand_after: int = 3) -> None:
        """expand_after: the stage, 3 or for RegDB 2, behind which maps are expanded; one more follows."""
        require_known("expand_after: ", [expand_after], (2, 3))
        if self.method.own_stages >= expand_after:
            raise UserError(f"own_stages: {self.method.own_stages} found, less than {expand_after} expected: "
                            "the modalities' maps are copied together")
        if expand_after == 2:
            self.shared.pop("layer4")
        widths = (backbone.stem_width, *backbone.widths)
        self.expanded = STAGES[expand_after - 1]
        self.channels, self.positions = (nn.ModuleDict({
            stage: kind(high, low) for stage, low, high in zip(STAGES[:expand_after], widths, widths[1:])})
            for kind in (ChannelAttention, PositionAttention))
        self.expansion = Expansion(widths[expand_after])

    def after(self, stage: str, x: Tensor, before: Tensor) -> Tensor:
        """Attention to the stage's input, over channels, then over positions; then the expansion."""
        if stage in self.channels:
            x = self.positions[stage](self.channels[stage](x, before), before)
        return self.expansion(x) if stage == self.expanded else x

    def embed(self, maps: Tensor) -> Output:
        """The last maps -> in training the features of each map, in testing those of each image."""
        output = super().embed(maps)
        if self.training:
            return output
        logits = output.logits.unflatten(0, (self.copies, -1)).mean(0)
        return Output(side_by_side(output.feats), side_by_side(output.neck), logits)

    def rates(self, pretrained: bool, optim: str) -> dict[str, float]:
        """All but BNNeck and classifier learns as the backbone does, as published."""
        others = super().rates(pretrained, optim)
        return {rf"{BACKBONE}|channels\.|positions\.|expansion\.": others[BACKBONE], **others}


def side_by_side(feats: Tensor) -> Tensor:
    """Three copies (3 B, D) of B images -> (B, 3 D), each of unit length; lengths have no gradient
    (retrieval/evidence.py).
    """
    lengths = feats.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.cat((feats / lengths).chunk(3), 1)
