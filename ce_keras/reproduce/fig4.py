"""Figure 4: test error against the kernel's variance, and against the number of parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.geometry import Design, fully_connected
from ce_keras.optimum import search
from ce_keras.problem import MODES
from ce_keras.progress import progress
from ce_keras.reproduce.plots import log_axis
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.statistics import mean_and_error, permutation_p, rank_correlation
from ce_keras.reproduce.store import Points
from ce_keras.reproduce.tables import designs_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 4: capacity and variance taken apart"

# A rank correlation with a larger p-value may be chance.
_CHANCE = 0.05


class Settings(NamedTuple):
    """The settings.

    Attributes:
        data: `"mnist"` or `"fashion_mnist"`.
        source: source of the images, as in recipes.
        images: number of training images, equally many of each class; `None` for all.
        epochs: passes through them.
        batch: number of images in a step.
        rate: learning rate of Adam.
        repetitions: trained networks for every point.
        at_once: number of repetitions that are trained as one block-diagonal network.
        depth: number of weight matrices (L).
        base: width of the baseline's hidden layers.
        widths: widths of a path.
    """

    data: str = "mnist"
    source: str = "tfds"
    images: int | None = None
    epochs: int = 70
    batch: int = 128
    rate: float = 1e-3
    repetitions: int = 100
    at_once: int = 10
    depth: int = 6
    base: int = 200
    widths: tuple[int, ...] = (3, 5, 8, 12, 20, 35, 63, 100, 200)


SCALES: dict[Scale, Settings] = {
    "small": Settings(
        data="fashion_mnist",
        source="embedded",
        images=10_000,
        epochs=10,
        batch=100,
        repetitions=24,
        at_once=8,
        widths=(5, 12, 35, 63, 200),
    ),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Train every design on both curves; return the errors of all repetitions."""
    train, test = _images(settings)
    module = fully_connected(train[0].shape[1], [settings.base] * (settings.depth - 1), 10)
    chosen = [
        (mode, design)
        for mode in MODES
        for design in designs_on(
            search(module, mode, alpha="closed_form", widths=settings.widths).curve
        )
    ]
    curves: dict[str, list[Any]] = {mode: [] for mode in MODES}
    parts = range(0, settings.repetitions, settings.at_once)
    with progress(total=len(chosen) * len(parts), desc="fig4", delay=1) as bar:
        for mode, design in chosen:
            errors, losses = [], []
            for begun in parts:
                count = min(settings.at_once, settings.repetitions - begun)
                done = points(
                    f"{design['design']} {begun}",
                    _train,
                    *(settings, Design.parse(design["design"]), train, test, count, seed + begun),
                )
                errors += done["errors"]
                losses += done["losses"]
                bar.update()
            curves[mode].append({**design, "errors": errors, "losses": losses})
    return {"curves": curves}


def _images(settings: Settings) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return training and test images, normalised and flat, and their labels."""
    from ce_keras.training.datasets import ArrayDataset, load_dataset
    from ce_keras.training.recipe import DataRecipe

    source = load_dataset(DataRecipe(settings.data, settings.source, limit=settings.images))
    if not isinstance(source, ArrayDataset):
        raise ValueError(f"data: got {settings.data!r}; its images do not fit into memory")
    mean, std = source.splits[0].images.mean(), source.splits[0].images.std()
    return tuple(
        (
            ((half.images - mean) / std).astype(np.float32).reshape(len(half.labels), -1),
            half.labels.astype(np.int32),
        )
        for half in source.splits
    )


def _train(
    settings: Settings,
    design: Design,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    repetitions: int,
    seed: int,
) -> dict[str, list[float]]:
    """Train all repetitions at once; return test errors in percent, and training losses."""
    import keras

    model = repeated(
        design, repetitions, train[0].shape[1], settings.depth, int(train[1].max()) + 1, seed
    )
    # Adam is elementwise: the sum of the losses trains each repetition as if it were alone.
    model.compile(keras.optimizers.Adam(settings.rate), sum_of_losses)
    batches = _batches(train, settings.batch, seed)
    model.fit(batches, epochs=settings.epochs, shuffle=False, verbose=0)
    logits = model.predict(test[0], batch_size=500, verbose=0)
    errors = 100 * (logits.argmax(-1) != test[1][:, None]).mean(0)
    known = model.predict(train[0], batch_size=500, verbose=0).astype(np.float64)
    log_odds = known - known.max(-1, keepdims=True)
    log_odds -= np.log(np.exp(log_odds).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_odds, train[1][:, None, None], -1)[..., 0].mean(0)
    return {"errors": errors.tolist(), "losses": losses.tolist()}


def _batches(data: tuple[np.ndarray, np.ndarray], batch: int, seed: int) -> Any:
    import tensorflow as tf

    images, labels = tf.constant(data[0]), tf.constant(data[1])
    order = tf.data.Dataset.range(len(data[1])).shuffle(len(data[1]), seed=seed)
    # Batches of another size would be compiled again.
    return order.batch(batch, drop_remainder=True).map(
        lambda index: (tf.gather(images, index), tf.gather(labels, index))
    )


def repeated(
    design: Design, repetitions: int, inputs: int, depth: int, classes: int, seed: int
) -> Any:
    """Build independent fully connected ensembles of one design, side by side.

    Returns:
        A Keras model from `(batch, inputs)` to logits `(batch, repetitions, classes)`.
    """
    import keras

    from ce_keras.layers import Aggregate
    from ce_keras.zoo.perceptron import paths

    m, n = design
    image = keras.Input((inputs,))
    x = paths(image, Design(repetitions * m, n), depth, classes, seed)
    x = keras.layers.Reshape((repetitions, m * classes))(x)
    return keras.Model(image, Aggregate(m)(x))


def sum_of_losses(labels: Any, logits: Any) -> Any:
    """Return the sum of the cross entropies of all repetitions; their gradients are separate."""
    from keras import ops

    each = ops.tile(ops.reshape(labels, (-1, 1)), (1, logits.shape[1]))
    return ops.sum(ops.sparse_categorical_crossentropy(each, logits, from_logits=True), axis=1)


def summarize(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, for both curves, mean errors, their range, and their rank correlations."""
    found: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        rows = data["curves"][mode]
        means, errors = np.array([mean_and_error(row["errors"]) for row in rows]).T
        smoothest = min(range(len(rows)), key=lambda at: rows[at]["variance"])
        effect = float(means.max() - means.min())
        found[mode] = {
            "means": means,
            "errors": errors,
            "best": rows[int(means.argmin())]["width"],
            "smoothest": rows[smoothest]["width"],
            # The widest is the baseline.
            "gain": float(means[-1] - means[smoothest]),
            "gain_error": float(np.hypot(errors[-1], errors[smoothest])),
            "effect": effect,
            "ratio": float(errors.max() / effect) if effect else math.inf,
            **{
                quantity: (
                    rank_correlation([row[quantity] for row in rows], means),
                    permutation_p([row[quantity] for row in rows], means, seed=0),
                )
                for quantity in ("variance", "params")
            },
        }
    return found


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare with the statements of the caption."""
    summary = data["summary"]
    primal, dual = summary["primal"], summary["dual"]
    (correlation, p), (capacity, capacity_p) = primal["variance"], dual["params"]
    return [
        Check(
            "primal: rank correlation of error and Var(K)",
            "high",
            f"{correlation:.2f} (permutation p = {p:.4f})",
            correlation > 0 if p < _CHANCE else None,
        ),
        Check(
            f"primal: error of the baseline above that of the smoothest, n = {primal['smoothest']}",
            "positive",
            f"{primal['gain']:.2f} ± {primal['gain_error']:.2f} points",
            primal["gain"] > 0 if abs(primal["gain"]) >= 3 * primal["gain_error"] else None,
        ),
        Check(
            "dual: more parameters at equal Var(K) do not lower the error",
            "rank correlation not negative",
            f"{capacity:.2f} (permutation p = {capacity_p:.4f})",
            capacity >= 0 if capacity_p < _CHANCE or capacity >= 0 else None,
        ),
    ]


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    primal = data["summary"]["primal"]
    correlation, p = primal["variance"]
    trend = "no clear trend" if p >= _CHANCE else f"a rank correlation of {correlation:.2f}"
    return (
        f"On the primal curve, test error shows {trend} with the kernel's variance (p = {p:.2f}); "
        f"the design of least variance gains {primal['gain']:.2f} ± {primal['gain_error']:.2f} "
        "points over the baseline."
    )


def say(data: dict[str, Any]) -> str:
    """Return what was trained, and how large the effect is beside its error."""
    settings, summary = data["settings"], data["summary"]
    told = []
    for mode in MODES:
        row = summary[mode]
        enough = "at most" if row["ratio"] <= 0.1 else "more than"
        told.append(
            f"on the {mode} curve mean errors span {row['means'].min():.2f} to "
            f"{row['means'].max():.2f} %, with standard errors up to {row['errors'].max():.2f}: "
            f"{enough} a tenth of the effect; the lowest is at n = {row['best']}, the lowest "
            f"variance at n = {row['smoothest']}"
        )
    images = "all" if settings["images"] is None else f"{settings['images']:,}"
    return (
        f"Fully connected networks of {settings['depth']} weight matrices and base width "
        f"{settings['base']} on {settings['data']} ({images} training images), Adam, "
        f"{settings['epochs']} epochs, {settings['repetitions']} repetitions of every point; all "
        "repetitions see the images in one order. The variance is the exact one, at the "
        f"cardinality as built. {told[0][0].upper()}{told[0][1:]}; {told[1]}."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw error with variance and with parameters, in the paper's four panels."""
    summary = data["summary"]
    axes = figure.subplots(2, 2, sharex=True)
    labels = {"variance": "Var(K)/E[K]²", "params": "parameters"}
    for row, quantity in enumerate(("variance", "params")):
        for ax, mode in zip(axes[row], MODES, strict=True):
            rows, found = data["curves"][mode], summary[mode]
            widths = [each["width"] for each in rows]
            ax.errorbar(widths, found["means"], found["errors"], fmt="o-", ms=4, lw=1, capsize=2)
            other = ax.twinx()
            other.plot(
                widths, [each[quantity] for each in rows], "s--", color="tab:red", ms=3, lw=1
            )
            other.set_ylabel(labels[quantity], color="tab:red", fontsize=8)
            if quantity == "variance" and mode == "primal":
                other.set_yscale("log")
            log_axis(ax, widths, "width n of a path" if row == 1 else "")
            ax.set_ylabel("test error in %", color="tab:blue", fontsize=8)
            if row == 0:
                ax.set_title(mode, fontsize=11)
