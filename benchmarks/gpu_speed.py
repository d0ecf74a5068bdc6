"""Time on a GPU, with PyTorch in bfloat16: grouped convolutions, and steps of ResNeXt-50.

- `--part convolutions`: forward and backward, by PyTorch, in packs of groups, and masked;
- `--part steps`: a training step, ours by Keras on PyTorch, and timm's.

Every result is a line of JSON in `--out`, written as it ends. Without a GPU both run, slowly.

    KERAS_BACKEND=torch python benchmarks/gpu_speed.py --part steps --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from gpu import DEVICE, say, synchronize
from torch_resnext import PackedConv2d

from ce_keras.geometry import RESNEXTS, Design
from ce_keras.zoo.resnext import build_resnext


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = {"convolutions": convolutions, "steps": steps}
    parser.add_argument("--part", choices=parts, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gpu_speed"))
    parser.add_argument("--designs", nargs="*", default=["32x4d", "12x10d"], help="of `steps`")
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--side", type=int, default=224, help="of the images of `steps`")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Without `cudnn.benchmark`: with it the steps had not begun after 40 s on an H200.
    parts[arguments.part](arguments)
    say("done")


def milliseconds(function: Callable[[], Any], rounds: int = 7, calls: int = 4) -> float:
    """Median time of a call, of `rounds` times `calls` calls in a row."""
    function()
    times = []
    for _ in range(rounds):
        synchronize()
        begun = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize()
        times.append(1e3 * (time.perf_counter() - begun) / calls)
    return statistics.median(times)


def convolutions(arguments: argparse.Namespace) -> None:
    """Time grouped convolutions, forward and backward: PyTorch's, in packs, and masked."""
    shapes = [(37, 10, 32), (10, 10, 32), (37, 40, 8), (32, 4, 56), (12, 10, 56), (12, 80, 7)]
    for groups, width, side in shapes:
        channels = groups * width
        conv = PackedConv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        conv = conv.to(DEVICE, torch.bfloat16, memory_format=torch.channels_last)
        x = torch.randn(arguments.batch, channels, side, side, device=DEVICE, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        row: dict[str, Any] = {"groups": groups, "width": width, "side": side}
        upstream = torch.randn_like(x)

        def both(
            conv: PackedConv2d = conv, x: torch.Tensor = x, upstream: torch.Tensor = upstream
        ) -> Any:
            return torch.autograd.grad(conv(x), (x, conv.weight), upstream)

        reference = both()[1].float()
        for name, pack in (("native", 0), ("64", 64), ("128", 128), ("256", 256), ("masked", -1)):
            conv.pack_channels = channels if pack < 0 else pack
            row[f"{name}, ms"] = round(milliseconds(both), 4)
            difference = (both()[1].float() - reference).norm() / reference.norm()
            row[f"{name}, differs"] = float(difference)
        record(arguments, "convolutions", row)


def steps(arguments: argparse.Namespace) -> None:
    """Time a training step of ResNeXt-50: ours by Keras on PyTorch, and timm's."""
    try:
        import timm.models.resnet as peer
    except ImportError:
        say("timm is not installed: without it")
        peer = None
    side, batch = arguments.side, arguments.batch
    labels = torch.arange(batch, device=DEVICE) % 1000
    pixels = torch.randn(batch, side, side, 3, device=DEVICE)

    def timed(who: str, design: str, model: Any, forward: Callable[[], torch.Tensor]) -> None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]

        def step() -> None:
            loss = torch.nn.functional.cross_entropy(forward().float(), labels)
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.data.sub_(slope, alpha=1e-3)

        row = {"who": who, "design": design, "batch": batch, "ms": milliseconds(step)}
        record(arguments, "steps", row)

    for name in arguments.designs:
        design = Design.parse(name)
        if peer is not None:
            model = peer.ResNet(
                peer.Bottleneck,
                (3, 4, 6, 3),
                cardinality=design.cardinality,
                base_width=design.width,
            ).to(DEVICE, memory_format=torch.channels_last)

            def theirs(model: Any = model) -> torch.Tensor:
                with torch.autocast(DEVICE, torch.bfloat16):
                    return model(pixels.permute(0, 3, 1, 2))

            timed("timm", name, model, theirs)
        own = build_resnext(
            RESNEXTS["resnext50"],
            design,
            classifier_activation=None,
            seed=0,
            dtype="mixed_bfloat16",
            input_shape=(side, side, 3),
        )
        timed("ce_keras", name, own, lambda own=own: own(pixels, training=True))


def record(arguments: argparse.Namespace, name: str, row: dict[str, Any]) -> None:
    """Print a measurement, and add it to the results."""
    say(json.dumps(row))
    with (arguments.out / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
