"""Time networks not of ours before and after `ce_keras.layers.accelerate`.

    python benchmarks/accelerate.py [--rounds 5] [--side 64] [--batch 8] [--out docs/benchmarks]

Writes `accelerate.md`. A backbone of KerasHub takes part where `keras-hub` is installed.
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
from plain_networks import regnetx, resnext50, shufflenet
from timing import Timing, interleaved, report
from tqdm.auto import tqdm

from ce_keras.layers import GroupedConv1D, GroupedConv3D, accelerate

HAS_HUB = importlib.util.find_spec("keras_hub") is not None


class Row(NamedTuple):
    """A network, or a layer, before and after."""

    name: str
    what: str
    before: Timing
    after: Timing
    difference: str

    @property
    def ratio(self) -> float:
        """Keras' time over ours."""
        return self.before.median / self.after.median


def csp_resnext(side: int, depths: tuple[int, ...] = (3, 3, 5, 2)) -> keras.Model:
    """Return KerasHub's backbone with the settings of its preset of CSPResNeXt-50, and a head."""
    import keras_hub

    backbone = keras_hub.models.CSPNetBackbone(
        stem_filters=64,
        stem_kernel_size=7,
        stem_strides=4,
        stackwise_depth=list(depths),
        stackwise_strides=[1, 2, 2, 2][: len(depths)],
        stackwise_num_filters=[256, 512, 1024, 2048][: len(depths)],
        bottle_ratio=[1.0],
        block_ratio=[0.5],
        expand_ratio=[1.0],
        stage_type="csp",
        block_type="bottleneck_block",
        stem_pooling="max",
        groups=32,
        stem_padding="valid",
        cross_linear=True,
        image_shape=(side, side, 3),
    )
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, keras.layers.Dense(10)(x), name="KerasHub-CSPResNeXt-50")


def compared(model: keras.Model, batch: int, rounds: int) -> list[Row]:
    """Time a training step and a prediction, and compare outputs and gradients."""
    fast = accelerate(model)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *model.input_shape[1:])).astype("float32")
    y = rng.integers(0, model.output_shape[-1], batch)
    outputs, gradients = (
        _distance(*each) for each in zip(*(_pass(one, x, y) for one in (model, fast)), strict=True)
    )
    calls: dict[str, dict[str, Callable[[], Any]]] = {"training step": {}, "prediction": {}}
    for name, one in (("before", model), ("after", fast)):
        one.compile(
            keras.optimizers.SGD(0.001, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        calls["training step"][name] = lambda one=one: one.train_on_batch(x, y)
        calls["prediction"][name] = lambda one=one: one.predict_on_batch(x)
    differences = {"training step": gradients, "prediction": outputs}
    rows = []
    for what, contestants in calls.items():
        timings = interleaved(contestants, rounds)
        name = f"{model.name}, batch {batch}"
        rows.append(
            Row(name, what, timings["before"], timings["after"], f"{differences[what]:.0e}")
        )
    return rows


def _pass(model: keras.Model, x: Any, y: Any) -> tuple[list[Any], list[Any]]:
    """Return outputs, and the gradients of the loss, without the normalisation's batch statistics.

    Those would amplify the rounding of a network whose weights are random.
    """

    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            logits = model(x, training=False)
            loss = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        return logits, tape.gradient(loss, [each.value for each in model.trainable_variables])

    logits, gradients = run()
    return [logits], gradients


def _distance(ours: list[Any], theirs: list[Any]) -> float:
    """Return the distance of two lists of tensors, relative to their norm."""
    a, b = (np.concatenate([np.ravel(each) for each in values]) for values in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def layer_rows(small: bool, rounds: int) -> list[Row]:
    """Time rows and volumes, forward and backward."""
    rows = []
    shapes: list[tuple[type, type, tuple[int, ...], int, int]] = [
        (keras.layers.Conv1D, GroupedConv1D, (32, 256, 64), 8, 5),
        (keras.layers.Conv1D, GroupedConv1D, (32, 1024, 128), 32, 3),
        (keras.layers.Conv1D, GroupedConv1D, (16, 512, 128), 2, 9),
        (keras.layers.Conv1D, GroupedConv1D, (16, 512, 128), 128, 15),
        (keras.layers.Conv3D, GroupedConv3D, (4, 16, 16, 16, 32), 8, 3),
        (keras.layers.Conv3D, GroupedConv3D, (4, 16, 16, 16, 64), 32, 3),
        (keras.layers.Conv3D, GroupedConv3D, (2, 16, 16, 16, 64), 2, 3),
    ]
    for stock, ours, shape, groups, kernel in shapes[:1] if small else shapes:
        x = tf.random.stateless_normal(shape, (0, 1))
        layers = [kind(shape[-1], kernel, padding="same", groups=groups) for kind in (stock, ours)]
        steps = {}
        for name, layer in zip(("before", "after"), layers, strict=True):
            layer.build(shape)
            layer.set_weights(layers[0].get_weights())
            steps[name] = _layer_step(layer, x)
        difference = f"{_distance(*([*step()] for step in steps.values())):.0e}"
        times = interleaved(steps, rounds)
        name = f"{stock.__name__}, {groups} groups, kernel {kernel}, input {shape}"
        rows.append(Row(name, "forward + backward", times["before"], times["after"], difference))
    return rows


def _layer_step(layer: Any, x: Any) -> Callable[[], Any]:
    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, [x, layer.kernel.value])

    return run


def table(rows: list[Row]) -> list[str]:
    """Return the rows in Markdown."""
    head = "| what | | Keras' own | accelerated | ratio (lowest to highest) | difference |"
    lines = [head, "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        low, high = row.before.low / row.after.high, row.before.high / row.after.low
        ratio = f"{row.ratio:.1f} ({low:.1f}-{high:.1f})"
        lines.append(
            f"| {row.name} | {row.what} | {row.before} | {row.after} | {ratio} | {row.difference} |"
        )
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="one shallow network: does it run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    builders: list[Callable[[], keras.Model]] = [
        lambda: resnext50(options.side),
        lambda: regnetx(options.side),
        lambda: shufflenet(options.side),
    ]
    if options.small:
        builders = [lambda: regnetx(16, depths=(1,), widths=(32,))]
    elif HAS_HUB:
        builders.append(lambda: csp_resnext(options.side))
    networks = [
        row
        for build in tqdm(builders, "networks")
        for row in compared(build(), options.batch, options.rounds)
    ]
    layers = layer_rows(options.small, options.rounds)
    steps = sorted(row.ratio for row in networks if row.what == "training step")
    gains = sorted(row.ratio for row in layers)
    verdict = (
        f"A training step with Keras' own layers takes {steps[0]:.1f} to {steps[-1]:.0f} times as "
        f"long on a CPU as after `accelerate`; a grouped `Conv1D` or `Conv3D`, {gains[0]:.0f} to "
        f"{gains[-1]:.0f} times."
    )
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.0f}; "
    lines = [
        "# Networks of others, accelerated",
        "",
        f"{machine}TensorFlow {tf.__version__}, Keras {keras.__version__}. Images of "
        f"{options.side}x{options.side} pixels; SGD with momentum. Medians (quartiles) of "
        f"{options.rounds} rounds side by side, of 3 for what takes more than a second; ratio: "
        "Keras' time over ours. Difference: of the outputs (prediction) or of all gradients "
        "(training step, forward + backward), relative to their "
        "norm.",
        "",
        *table(networks),
        "",
        "The networks are written in Keras alone (`benchmarks/plain_networks.py`); KerasHub's has "
        "the settings of its preset.",
        "",
        "## Rows and volumes",
        "",
        *table(layers),
        "",
        "Rows are convolved as images of one line. Volumes are split into one convolution a group, "
        "which `accelerate` does only on a CPU with channels last; other cases were not measured.",
    ]
    report(options.out / "accelerate.md", verdict, lines)


if __name__ == "__main__":
    main()
