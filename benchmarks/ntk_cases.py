"""The kernels that benchmarks/ntk.py and benchmarks/ntk_gpu.py compute, on any backend of Keras.

As a script it answers benchmarks/ntk.py, which runs it on the other backends, one line for a line:
asked `gram NAME LOGITS`, it computes the kernel and answers the seconds.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from ce_keras import zoo
from ce_keras.ntk import empirical_ntk


class Case(NamedTuple):
    """A kernel to compute: its network, logits and inputs; a tiny one for tests."""

    name: str
    logits: int
    inputs: int = 64
    tiny: bool = False

    def __str__(self) -> str:
        titles = {"dense": "dense 100-500x5", "block": "bottleneck block, 8x8"}
        title = titles.get(self.name, "ResNeXt-29 10x10d, 32x32")
        return f"{title}, {self.logits} logits, {self.inputs} inputs"

    @property
    def trace_axes(self) -> tuple[int, ...]:
        """Return the axes to average: none of ten logits, of which every pair is computed."""
        return (-1,) if self.logits == 1 else ()


CASES = [
    Case("dense", 1),
    Case("dense", 10),
    Case("block", 1),
    Case("block", 10),
    Case("resnext29", 1, 16),
    Case("resnext29", 10, 16),
]


def build(case: Case) -> keras.Model:
    """Return the case's network, with random weights."""
    if case.name == "dense":
        hidden = [layers.Dense(5 if case.tiny else 500, "relu") for _ in range(5)]
        return keras.Sequential([keras.Input((100,)), *hidden, layers.Dense(case.logits)])
    if case.name == "resnext29":
        options = {"classes": case.logits, "classifier_activation": None}
        if case.tiny:
            return zoo.resnext11(cardinality=2, width=2, input_shape=(16, 16, 3), **options)
        return zoo.resnext29(mode="dual", **options)
    width = 2 if case.tiny else 64
    image = keras.Input((8, 8, 4 * width))
    x = layers.Conv2D(width, 1, activation="relu")(image)
    x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    x = layers.Add()([image, layers.Conv2D(4 * width, 1)(x)])
    return keras.Model(image, layers.Dense(case.logits)(layers.GlobalAveragePooling2D()(x)))


def draw(case: Case, model: keras.Model) -> np.ndarray:
    """Return random inputs for the case's network."""
    shape = (case.inputs, *model.input_shape[1:])
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


@functools.cache
def kernel_of(name: str, logits: int) -> functools.partial[np.ndarray]:
    """Return a function that computes a case's kernel, compiled."""
    case = next(case for case in CASES if case[:2] == (name, logits))
    model = build(case)
    kernel = functools.partial(empirical_ntk, model, draw(case, model), trace_axes=case.trace_axes)
    kernel()
    kernel()
    return kernel


def main() -> None:
    """Answer until there are no more questions."""
    for line in sys.stdin:
        _, name, logits = line.split()
        kernel = kernel_of(name, int(logits))
        begun = time.perf_counter()
        kernel()
        print(f"answer {time.perf_counter() - begun}", flush=True)


if __name__ == "__main__":
    main()
