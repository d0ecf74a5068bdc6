"""The variance of a whole network's kernel, over designs of equal parameters."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.geometry import Design, ResNeXt, resnext
from ce_keras.optimum import search
from ce_keras.progress import progress
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.store import Points
from ce_keras.variance.closed_form import relative_variance
from ce_keras.variance.fit import log_moment_ratio

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

TITLE = "From block to network: the variance of the whole kernel"

#: Blocks in each of three stages, by the name of the network.
BLOCKS = {"ResNeXt-11": 1, "ResNeXt-20": 2}

#: Batch normalisation by the statistics of the batch, differentiated through; by the same
#: statistics as constants; by the mean 0 and variance 1 that an untrained network has.
NORMALISATIONS = ("training", "inference", "untrained")

# Networks drawn at a time.
_AT_ONCE = 25

# Standard errors within which variances count as equal.
_ERRORS = 2.0


class Settings(NamedTuple):
    """The settings.

    Attributes:
        draws: number of random networks for each design.
        batch_size: images that the statistics of a batch are of; the kernel is that of the first.
        widths: of the designs' paths.
        source: `"embedded"`, or a folder of images.
        shrink: pixels along either side that are averaged into one, to save time.
    """

    draws: int = 1000
    batch_size: int = 16
    widths: tuple[int, ...] = (64, 24, 10, 7, 4, 2)
    source: str = "embedded"
    shrink: int = 2


SCALES: dict[Scale, Settings] = {"small": Settings(draws=100), "full": Settings()}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Return the variance of every design's kernel by draws, and of its blocks by the exact law."""
    images = _images(settings)
    designs = {name: _designs(_shape(name, images), settings.widths) for name in BLOCKS}
    cases = [(name, how, d) for name in BLOCKS for how in NORMALISATIONS for d in designs[name]]
    rounds = range(-(-settings.draws // _AT_ONCE))
    drawn: dict[Any, list[Any]] = {case: [] for case in cases}
    kernels = functools.cache(lambda name, how, design: _kernels(name, how, design, images))
    todo = [*itertools.product(rounds, cases)]
    for number, case in progress(todo, desc="network_variance", delay=1):
        name = f"{number} {' '.join(case)}"
        rng = np.random.default_rng([seed, *name.encode()])
        drawn[case] += points(name, _draw, kernels, case, rng)
    return {
        "exact": {name: _exact(name, images, designs[name]) for name in BLOCKS},
        "rows": [
            [*case, *_summary(np.array(values[: settings.draws]))] for case, values in drawn.items()
        ],
    }


def summarize(data: dict[str, Any]) -> dict[str, Any]:
    """Return by network and normalisation the line "floor + slope times the blocks' variance".

    Beside it stand chi-square and every design's distance from the line in standard errors, and
    the distance of the best block's design from the smallest variance that was measured.
    """
    lines: dict[str, Any] = {}
    for name, how in itertools.product(data["exact"], NORMALISATIONS):
        rows = [row for row in data["rows"] if row[:2] == [name, how]]
        exact = np.array(data["exact"][name])
        variance, error = np.array([row[3:5] for row in rows]).T
        design = np.stack([np.ones_like(exact), exact], axis=1) / error[:, None]
        covariance = np.linalg.pinv(design.T @ design)
        floor, slope = covariance @ design.T @ (variance / error)
        away = (variance - floor - slope * exact) / error
        best, least = int(exact.argmin()), int(variance.argmin())
        apart = np.hypot(error[best], error[least]) if best != least else 1.0
        lines[f"{name}, {how}"] = {
            "floor": (float(floor), float(covariance[0, 0] ** 0.5)),
            "slope": (float(slope), float(covariance[1, 1] ** 0.5)),
            "chi_square": float((away**2).sum()),
            "away": away.tolist(),
            "best_block": rows[best][2],
            "least": rows[least][2],
            "above_least": float((variance[best] - variance[least]) / apart),
            "near_least": int(
                (variance - variance[least] <= _ERRORS * np.hypot(error, error[least])).sum()
            ),
        }
    return lines


def compare(data: dict[str, Any]) -> list[Check]:
    """Return the design of least variance of every network, and all designs' variances."""
    checks = [
        Check(
            f"{case}: design of least variance (paper: that of the best block)",
            line["best_block"],
            f"{line['least']}; {line['best_block']} is {line['above_least']:.1f} standard errors "
            "above it",
            bool(line["above_least"] <= _ERRORS),
        )
        for case, line in data["summary"].items()
    ]
    for case, line in data["summary"].items():
        name = case.partition(",")[0]
        rows = [row for row in data["rows"] if f"{row[0]}, {row[1]}" == case]
        for row, exact, away in zip(rows, data["exact"][name], line["away"], strict=True):
            ours = f"{row[3]:.4f} ± {row[4]:.4f}; its blocks {exact:.4f}; {away:+.1f} from the line"
            checks.append(Check(f"{case}: {row[2]}", None, ours, None))
    return checks


def verdict(data: dict[str, Any]) -> str:
    """Return in how many networks the best block's design has the least variance."""
    lines = data["summary"].values()
    found = [line["above_least"] <= _ERRORS for line in lines]
    near, designs = [line["near_least"] for line in lines], len(data["settings"]["widths"])
    return (
        f"In {sum(found)} of {len(found)} cases the variance of the whole network's kernel is, "
        f"within {_ERRORS:g} standard errors, least at the design whose blocks are best; but so "
        f"near to the least are {min(near)} to {max(near)} of the {designs} designs."
    )


def say(data: dict[str, Any]) -> str:
    """Return what was drawn, and over what floor the network follows the blocks."""
    settings = data["settings"]
    lines = "; ".join(
        f"{case}: {line['floor'][0]:.4f} ± {line['floor'][1]:.4f} plus {line['slope'][0]:.2f} ± "
        f"{line['slope'][1]:.2f} times the blocks' variance, chi-square {line['chi_square']:.1f} "
        f"on {len(line['away']) - 2}"
        for case, line in data["summary"].items()
    )
    return (
        f"{settings['draws']:,} networks of each design were drawn, and the kernel of one logit at "
        "one image taken in the NTK parameterisation. Images are Fashion-MNIST's (or a folder's), "
        f"every {settings['shrink']}x{settings['shrink']} pixels averaged into one. Batch "
        f"normalisation is by the statistics of {settings['batch_size']} images, differentiated "
        "through (training) or constant (inference), or by the mean 0 and variance 1 of an "
        "untrained network. The blocks' variance is the exact law's, averaged over the stages. "
        f"Lines through the designs: {lines}."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the variance of all designs with two standard errors, and the line of the blocks."""
    axes = figure.subplots(1, len(data["exact"]))
    for ax, name in zip(axes, data["exact"], strict=True):
        exact = np.array(data["exact"][name])
        for how in NORMALISATIONS:
            rows = [row for row in data["rows"] if row[:2] == [name, how]]
            widths = [Design.parse(row[2]).width for row in rows]
            variance, error = np.array([row[3:5] for row in rows]).T
            points = ax.errorbar(widths, variance, 2 * error, fmt="o", ms=4, capsize=3, label=how)
            line = data["summary"][f"{name}, {how}"]
            fitted = line["floor"][0] + line["slope"][0] * exact
            ax.plot(widths, fitted, lw=1, color=points.lines[0].get_color())
        ax.plot(widths, exact, "--", lw=1, color="black", label="blocks, exact law")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
        ax.set_xticks(widths, [row[2] for row in rows], fontsize=8, rotation=45)
        ax.minorticks_off()
        ax.set_xlabel("design, by the width of its paths")
        ax.set_title(name, fontsize=11)
    axes[0].set_ylabel("Var(K) / E[K]²")
    axes[0].legend(frameon=False, fontsize=8)


def _shape(name: str, images: np.ndarray) -> ResNeXt:
    return ResNeXt((BLOCKS[name],) * 3, 64, 64, 128, 3, 1, True, images.shape[1:], 10)


def _designs(shape: ResNeXt, widths: tuple[int, ...]) -> list[str]:
    """Return the design of each width that is nearest to the baseline's parameters."""
    network = resnext(shape)
    return [str(search(network, "primal", widths=[width]).design) for width in widths]


def _images(settings: Settings) -> np.ndarray:
    """Return the images, smaller by averages of neighbouring pixels, of mean 0 and variance 1."""
    from ce_keras.training.datasets import sample_images

    images, k = sample_images(settings.source, settings.batch_size), settings.shrink
    count, height, width, channels = images.shape
    tiles = images[:, : height // k * k, : width // k * k]
    small = tiles.reshape(count, height // k, k, width // k, k, channels).mean((2, 4))
    return ((small - small.mean()) / small.std()).astype(np.float32)


def _draw(kernels: Any, case: tuple[str, str, str], rng: np.random.Generator) -> list[Any]:
    """Return kernels of networks with new weights: the sum, and the contribution of the paths."""
    kernel, size = kernels(*case)
    drawn = (kernel(rng.standard_normal(size, np.float32)).numpy() for _ in range(_AT_ONCE))
    return [[float(f"{value:.6g}") for value in pair] for pair in drawn]


def _kernels(
    name: str, how: str, design: str, images: np.ndarray
) -> tuple[Callable[[Any], Any], int]:
    """Return a function of normal numbers, K(x, x) of the network with these weights; their count.

    The kernel is that of the NTK parameterisation, of the first logit at the first image; beside
    it, `(2,)`, stands the contribution of the paths' weights.
    """
    import keras
    import tensorflow as tf

    from ce_keras.variance.initial_values import initial_values
    from ce_keras.zoo.resnext import build_resnext

    shape = _shape(name, images)
    model = build_resnext(shape, Design.parse(design), classifier_activation=None, seed=0)
    values = [v for v in initial_values(model, model) if v.trainable and v.variance]
    inside = [float(_in_path(model, value.variable)) for value in values]
    statistics = [*model.non_trainable_variables]
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # The moving statistics are the last batch's.
    x = tf.constant(images)

    def call(mapping: list[Any], examples: Any, training: bool) -> tuple[Any, list[Any]]:
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logits = model(examples, training=training)
            after = [scope.get_current_value(variable) for variable in statistics]
        return logits[0, 0], after

    sizes = [int(np.prod(value.variable.shape)) for value in values]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([sum(sizes)], tf.float32)])
    def kernel(numbers: Any) -> Any:
        weights = [
            value.variance**0.5 * tf.reshape(part, value.variable.shape)
            for part, value in zip(tf.split(numbers, sizes), values, strict=True)
        ]
        mapping = [*zip((value.variable for value in values), weights, strict=True)]
        if how == "inference":
            _, after = call(mapping, x, True)
            after = [v if new is None else new for v, new in zip(statistics, after, strict=True)]
            mapping += zip(statistics, after, strict=True)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            examples = x if how == "training" else x[:1]
            output, _ = call(mapping, examples, how == "training")
        squares = [
            value.variance * tf.reduce_sum(gradient**2)
            for value, gradient in zip(values, tape.gradient(output, weights), strict=True)
        ]
        return tf.stack([sum(squares), sum(a * b for a, b in zip(squares, inside, strict=True))])

    return kernel, sum(sizes)


def _in_path(model: keras.Model, variable: Any) -> bool:
    """Return whether a kernel is one of a block's three convolutions."""
    (name,) = (
        layer.name for layer in model.layers if any(own is variable for own in layer.weights)
    )
    return name.endswith(("_1_conv", "_2_conv", "_3_conv"))


def _summary(pairs: np.ndarray) -> list[float]:
    """Return variance and error of the kernel and of the paths' part; the paths' mean share."""
    found = []
    for kernels in pairs.T:
        ratio, error = log_moment_ratio(kernels)
        found += [float(np.expm1(ratio)), float(np.exp(ratio) * error)]
    return [*found, float(pairs[:, 1].sum() / pairs[:, 0].sum())]


def _exact(name: str, images: np.ndarray, designs: list[str]) -> list[float]:
    """Return the mean over the stages of the exact variance of each design's block."""
    from ce_keras.variance import measure_correlation
    from ce_keras.zoo.resnext import build_resnext

    shape = _shape(name, images)
    model = build_resnext(shape, Design(1, 64), classifier_activation=None, seed=0)
    for layer in model.layers:
        if hasattr(layer, "moving_mean"):
            layer.momentum = 0.0
    model(images, training=True)
    stages = measure_correlation(model, images).stages
    found = []
    for m, n in map(Design.parse, designs):
        variances = [
            relative_variance([n * 2**stage] * 2, gram) / m for stage, gram in enumerate(stages)
        ]
        found.append(float(np.mean(variances)))
    return found
