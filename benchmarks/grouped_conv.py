"""Time our grouped convolution beside Keras' own and PyTorch's, and a ResNeXt-29 step.

    python benchmarks/grouped_conv.py [--rounds 9] [--out docs/benchmarks]

Writes `grouped_conv.json` and `grouped_conv.md`. PyTorch takes part where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from timing import Timing, begin_with, interleaved, ratios

from ce_keras import files, zoo
from ce_keras.geometry import RESNEXTS, Design
from ce_keras.layers import CollegialConv2D, FusedBatchNormalization

HAS_TORCH = importlib.util.find_spec("torch") is not None


class Shape(NamedTuple):
    """A 3x3 grouped convolution: `cardinality` paths of `width` on `side` x `side` pixels."""

    cardinality: int
    width: int
    side: int
    batch: int

    def __str__(self) -> str:
        return f"{self.cardinality}x{self.width} @ {self.side}x{self.side}, batch {self.batch}"


SHAPES = (Shape(10, 10, 32, 32), Shape(10, 20, 16, 32), Shape(10, 40, 8, 32), Shape(32, 4, 56, 8))
Designs = tuple[tuple[str, int, int], ...]
STEPS: Designs = (("10x10d", 10, 10), ("1x128d", 1, 128))
Stock = dict[str, tuple[type, ...]]
STOCK: Stock = {
    "Keras' convolution": (CollegialConv2D,),
    "Keras' normalisation": (FusedBatchNormalization,),
    "Keras' both": (CollegialConv2D, FusedBatchNormalization),
}


def convolutions(shape: Shape, backward: bool) -> dict[str, Callable[[], Any]]:
    """Return one call of each contestant on one shape, forward or forward and backward."""
    channels = shape.cardinality * shape.width
    x = np.random.default_rng(0).normal(size=(shape.batch, shape.side, shape.side, channels))
    layers = {
        "ce_keras": CollegialConv2D,
        "ce_keras, split": lambda *a, **o: CollegialConv2D(*a, implementation="split", **o),
        "Keras": lambda *a, cardinality, **o: keras.layers.Conv2D(*a, groups=cardinality, **o),
    }
    calls = {}
    for name, build in layers.items():
        layer = build(channels, 3, cardinality=shape.cardinality, padding="same", use_bias=False)
        calls[name] = _tensorflow_call(layer, tf.constant(x, tf.float32), backward)
    if HAS_TORCH:
        calls["PyTorch"] = _torch_call(x, shape.cardinality, backward)
    return calls


def _tensorflow_call(layer: Any, x: Any, backward: bool) -> Callable[[], Any]:
    layer.build(x.shape)

    @tf.function
    def run() -> Any:
        if not backward:
            return layer(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, [x, layer.kernel.value])

    return run  # On a CPU it returns when the result is there.


def _torch_call(x: np.ndarray, groups: int, backward: bool) -> Callable[[], Any]:
    import torch

    channels = x.shape[-1]
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
    conv = conv.to(memory_format=torch.channels_last)
    image = torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_(backward)

    def run() -> Any:
        if not backward:
            with torch.no_grad():
                return conv(image)
        conv.weight.grad = image.grad = None
        (conv(image) ** 2).sum().backward()
        return conv.weight.grad

    return run


def training_steps(
    network: str, batch: int, designs: Designs, stock: Stock
) -> dict[str, Callable[[], Any]]:
    """Return one SGD step of a network by each contestant."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, batch)
    calls = {}
    for design, cardinality, width in designs:
        make = zoo.NETWORKS[network]
        model = make(cardinality=cardinality, width=width, classifier_activation=None)
        x = rng.normal(size=(batch, *model.input_shape[1:])).astype("float32")
        calls[f"ce_keras, {design}"] = _keras_step(model, x, y)
        if cardinality > 1:
            for which, kinds in stock.items():
                calls[f"{which}, {design}"] = _keras_step(with_stock_layers(model, kinds), x, y)
        if HAS_TORCH:
            calls[f"PyTorch, {design}"] = _torch_step(network, Design(cardinality, width), x, y)
    return calls


def with_stock_layers(model: keras.Model, kinds: tuple[type, ...]) -> keras.Model:
    """Return a copy of a network with Keras' own layers in place of ours of these kinds."""

    def stock(layer: Any) -> Any:
        config = layer.get_config()
        if not isinstance(layer, kinds):
            return type(layer).from_config(config)
        if isinstance(layer, FusedBatchNormalization):
            return keras.layers.BatchNormalization.from_config(config)
        for ours in ("shared_input", "parameterization", "gain", "implementation"):
            del config[ours]
        return keras.layers.Conv2D(groups=config.pop("cardinality"), **config)

    return keras.models.clone_model(model, clone_function=stock)


def _keras_step(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: model.train_on_batch(x, y)


def _torch_step(network: str, design: Design, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    import torch
    from torch_resnext import TorchResNeXt

    model = TorchResNeXt(RESNEXTS[network], design).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()

    def run() -> float:
        image = torch.from_numpy(x).permute(0, 3, 1, 2)
        optimizer.zero_grad()
        loss = loss_of(model(image), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def measure(
    rounds: int,
    shapes: tuple[Shape, ...],
    network: str,
    batch: int,
    designs: Designs,
    stock: Stock,
) -> dict[str, dict[str, Timing]]:
    """Time each shape, forward and with the backward pass, and a training step."""
    timings = {}
    for shape in shapes:
        for direction, backward in (("forward", False), ("forward + backward", True)):
            timings[f"{shape}, {direction}"] = interleaved(convolutions(shape, backward), rounds)
    steps = training_steps(network, batch, designs, stock)
    name = network.replace("resnext", "ResNeXt-")
    timings[f"{name} training step, batch {batch}"] = interleaved(steps, rounds)
    return timings


def table(timings: dict[str, dict[str, Timing]], machine: str) -> str:
    """Return the timings as Markdown: medians, and each relative to the first, which is ours."""
    lines = [
        "# Grouped convolution",
        "",
        f"{machine}. Medians of interleaved runs (quartiles); ratio: time over ours.",
        "",
        "| what | by | median (quartiles) | ratio |",
        "|---|---|---:|---:|",
    ]
    for what, contestants in timings.items():
        ours = next(iter(contestants.values())).median
        lines += [
            f"| {what} | {name} | {timing} | {timing.median / ours:.2f} |"
            for name, timing in contestants.items()
        ]
    verdict = (
        f"Keras' own grouped convolution takes {ratios(lines, 'Keras')} times as long as ours on "
        "a CPU, most in the backward pass."
    )
    return "\n".join(begin_with(verdict, lines)) + "\n"


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32, help="of the training step")
    parser.add_argument("--small", action="store_true", help="tiny shapes: only whether it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    shapes = (Shape(2, 2, 4, 2),) if options.small else SHAPES
    designs = (("2x2d", 2, 2),) if options.small else STEPS
    # Every other network is compiled anew, which takes most of the small instance's time.
    stock = {"Keras' both": STOCK["Keras' both"]} if options.small else STOCK
    network = "resnext11c" if options.small else "resnext29"
    timings = measure(options.rounds, shapes, network, options.batch, designs, stock)
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    if HAS_TORCH:
        import torch

        versions += f", PyTorch {torch.__version__}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}; {versions}; {options.rounds} rounds"
    text = table(timings, machine)
    content = {
        "machine": machine,
        "timings": {
            what: {name: timing._asdict() for name, timing in contestants.items()}
            for what, contestants in timings.items()
        },
    }
    files.write_json(options.out / "grouped_conv.json", content)
    with files.replacing(options.out / "grouped_conv.md") as part:
        part.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
