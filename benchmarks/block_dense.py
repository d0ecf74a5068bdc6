"""Time our block-diagonal dense layer beside Keras' EinsumDense and PyTorch's batched product.

    python benchmarks/block_dense.py [--rounds 9] [--out docs/benchmarks]

The shapes are those of Figure 4: eight repetitions of a design, side by side, 100 images. PyTorch
takes part where it is installed.
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
from timing import interleaved, ratios, report

from ce_keras.layers import CollegialDense

HAS_TORCH = importlib.util.find_spec("torch") is not None


class Shape(NamedTuple):
    """A layer of `cardinality` paths, each from `width` to `width` numbers."""

    cardinality: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"{self.cardinality} paths of {self.width}, batch {self.batch}"


SHAPES = (Shape(624, 5, 100), Shape(256, 12, 100), Shape(80, 35, 100), Shape(8, 200, 100))


def contestants(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Return one forward and backward pass of each contestant."""
    m, n, batch = shape
    x = np.random.default_rng(0).normal(size=(batch, m, n)).astype("float32")
    calls = {}
    for compiled in ("XLA", "no XLA"):
        ours = CollegialDense(m * n, m, use_bias=False)
        einsum = keras.layers.EinsumDense("bmi,mio->bmo", (m, n))
        calls[f"ce_keras, {compiled}"] = _step(ours, x.reshape(batch, m * n), compiled == "XLA")
        calls[f"EinsumDense, {compiled}"] = _step(einsum, x, compiled == "XLA")
    if HAS_TORCH:
        calls["PyTorch's bmm"] = _torch_step(x)
    return calls


def _step(layer: Any, x: np.ndarray, jit_compile: bool) -> Callable[[], Any]:
    layer.build(x.shape)
    inputs = tf.constant(x)

    @tf.function(jit_compile=jit_compile)
    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs) ** 2)
        return tape.gradient(loss, [inputs, layer.kernel.value])

    return run  # On a CPU it returns when the result is there.


def _torch_step(x: np.ndarray) -> Callable[[], Any]:
    import torch

    m, n = x.shape[1:]
    inputs = torch.from_numpy(x).requires_grad_()
    kernel = torch.randn(m, n, n).requires_grad_()

    def run() -> Any:
        kernel.grad = inputs.grad = None
        (torch.bmm(inputs.transpose(0, 1), kernel).transpose(0, 1) ** 2).sum().backward()
        return kernel.grad

    return run


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="tiny shapes: only whether it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    if HAS_TORCH:
        import torch

        versions += f", PyTorch {torch.__version__}"
    lines = [
        "# Block-diagonal dense layers",
        "",
        f"Forward and backward, {os.cpu_count()} cores, {platform.machine()}; {versions}; "
        f"{options.rounds} rounds. Medians of interleaved runs (quartiles); ratio: time over ours "
        "with XLA, as `fit` compiles it.",
        "",
        "| what | by | median (quartiles) | ratio |",
        "|---|---|---:|---:|",
    ]
    for shape in (Shape(2, 3, 4),) if options.small else SHAPES:
        timings = interleaved(contestants(shape), options.rounds)
        ours = timings["ce_keras, XLA"].median
        lines += [
            f"| {shape} | {name} | {timing} | {timing.median / ours:.2f} |"
            for name, timing in timings.items()
        ]
    verdict = (
        f"Compiled by XLA, an EinsumDense takes {ratios(lines, 'EinsumDense, XLA')} times as long "
        f"as our layer; not compiled, {ratios(lines, 'EinsumDense, no XLA')} times."
    )
    report(options.out / "block_dense.md", verdict, lines)


if __name__ == "__main__":
    main()
