"""ResNeXts in plain PyTorch, to measure against, to check outputs with, and to train quickly."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d

from ce_keras.geometry import Design, ResNeXt


class PackedConv2d(nn.Conv2d):
    """A grouped convolution as dense ones over packs of neighbouring groups.

    Between the groups of a pack the dense kernel is zero. A GPU has fast kernels for few group
    widths only; for the others this is more arithmetic in less time.
    """

    #: Channels that a pack has room for; 0 leaves the groups to PyTorch.
    pack_channels = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        width = self.out_channels // self.groups
        if self.groups == 1 or not self.pack_channels:
            return super().forward(x)
        count = math.ceil(self.groups / max(1, self.pack_channels // width))
        edges = [round(self.groups * pack / count) for pack in range(count + 1)]
        packs = [self._pack(x, low, high) for low, high in itertools.pairwise(edges)]
        return packs[0] if count == 1 else torch.cat(packs, 1)

    def _pack(self, x: torch.Tensor, low: int, high: int) -> torch.Tensor:
        outputs, inputs = self.out_channels // self.groups, self.in_channels // self.groups
        groups = high - low
        own = self.weight[low * outputs : high * outputs]
        own = own.reshape(groups, outputs, 1, inputs, *self.kernel_size)
        mask = torch.eye(groups, dtype=own.dtype, device=own.device)
        dense = (own * mask[:, None, :, None, None, None]).reshape(
            groups * outputs, groups * inputs, *self.kernel_size
        )
        images = x[:, low * inputs : high * inputs]
        return conv2d(images, dense, None, self.stride, self.padding)


class Bottleneck(nn.Module):
    """The block, in the layout and with the names of torchvision's."""

    def __init__(self, inputs: int, inner: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = PackedConv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNeXt(nn.Module):
    """A ResNeXt of any shape and design."""

    def __init__(self, shape: ResNeXt, design: Design) -> None:
        super().__init__()
        kernel = shape.stem_kernel
        self.conv1 = nn.Conv2d(
            shape.input_shape[-1], shape.stem, kernel, shape.stem_strides, kernel // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(shape.stem)
        self.pool = nn.MaxPool2d(3, 2, 1) if shape.pool else nn.Identity()
        blocks: list[nn.Module] = []
        inputs = shape.stem
        for stage, count in enumerate(shape.blocks):
            inner = design.cardinality * design.width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                outputs = shape.filters * 2**stage
                blocks.append(Bottleneck(inputs, inner, outputs, design.cardinality, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, shape.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images, `(batch, channels, height, width)`."""
        x = self.blocks(self.pool(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean(dim=(2, 3)))

    def pairs(self, shape: ResNeXt) -> dict[str, nn.Module]:
        """Return the layers with weights, by the names that `ce_keras.zoo` gives them."""
        named: dict[str, nn.Module] = {
            "conv1_conv": self.conv1,
            "conv1_bn": self.bn1,
            "predictions": self.fc,
        }
        blocks = iter(self.blocks)
        for stage, count in enumerate(shape.blocks):
            for number in range(count):
                block: Any = next(blocks)
                steps = [block.downsample, None, None, None]
                for step, (conv, norm) in enumerate(
                    [
                        tuple(steps[0] or (None, None)),
                        (block.conv1, block.bn1),
                        (block.conv2, block.bn2),
                        (block.conv3, block.bn3),
                    ]
                ):
                    if conv is not None:
                        name = f"conv{stage + 2}_block{number + 1}_{step}"
                        named[f"{name}_conv"], named[f"{name}_bn"] = conv, norm
        return named
