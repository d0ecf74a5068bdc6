"""Theorem 1: under gradient flow the ensemble's kernel changes as 1/(mn)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.progress import progress
from ce_keras.reproduce.plots import log_axis
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.statistics import log_slope, mean_and_error
from ce_keras.reproduce.store import Points
from ce_keras.variance.samplers import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Theorem 1: change of the kernel under gradient flow"


class Settings(NamedTuple):
    """The settings.

    Attributes:
        ensembles: number of ensembles trained at once for each point.
        paths: numbers of paths, at width `at_width`.
        widths: widths of a path, with `at_paths` paths.
        at_width: see above.
        at_paths: see above.
        examples: number of inputs, on a sphere, with normal targets.
        inputs: size of an input.
        steps: number of steps of gradient descent.
        rate: learning rate, small beside the inverse of the kernel's largest eigenvalue.
    """

    ensembles: int = 100
    paths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    at_width: int = 32
    at_paths: int = 8
    examples: int = 4
    inputs: int = 4
    steps: int = 40
    rate: float = 0.05


SCALES: dict[Scale, Settings] = {
    "small": Settings(ensembles=40, paths=(1, 2, 4, 8, 16, 32), widths=(8, 16, 32, 64)),
    "full": Settings(),
}


class Activation(NamedTuple):
    """An activation function and its derivative."""

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]


ACTIVATIONS = {
    "tanh": Activation(np.tanh, lambda h: 1 - np.tanh(h) ** 2),
    "softplus": Activation(lambda h: np.logaddexp(0, h), lambda h: 0.5 * (1 + np.tanh(h / 2))),
    "relu": Activation(lambda h: np.maximum(h, 0), lambda h: (h > 0).astype(h.dtype)),
}


class Ensembles:
    """Many ensembles of networks with two hidden layers, trained at once (Eq. 3 and 4).

    The first two axes of every array are (ensembles, paths).

    Args:
        activation: of both hidden layers.
        x: inputs, `(ensembles, 1, examples, inputs)`.
        shape: ensembles, paths and width.
        rng: generator of the weights.
    """

    def __init__(
        self, activation: Activation, x: np.ndarray, shape: tuple[int, int, int], rng: Any
    ) -> None:
        ensembles, m, n = shape
        self._activation, self._x = activation, x / np.sqrt(x.shape[-1])

        def normal(*size: int) -> np.ndarray:
            return rng.standard_normal((ensembles, m, *size))

        self.first, self.second, self.last = normal(x.shape[-1], n), normal(n, n), normal(n, 1)
        self._root = np.sqrt(n)

    def _passes(self) -> tuple[np.ndarray, ...]:
        """Return the activations and the cotangents of both layers, and the paths' outputs."""
        value, slope = self._activation
        h1 = self._x @ self.first
        y1 = value(h1) / self._root
        h2 = y1 @ self.second
        y2 = value(h2) / self._root
        d2 = self.last.swapaxes(-1, -2) * slope(h2) / self._root
        d1 = d2 @ self.second.swapaxes(-1, -2) * slope(h1) / self._root
        return y1, y2, d1, d2, (y2 @ self.last)[..., 0]

    def kernel(self) -> np.ndarray:
        """Return K of every ensemble, a mean over paths: `(ensembles, examples, examples)`."""
        y1, y2, d1, d2, _ = self._passes()
        paths = gram(y2) + gram(y1) * gram(d2) + gram(self._x) * gram(d1)
        return paths.mean(1)

    def step(self, rate: float, targets: np.ndarray) -> None:
        """Take one gradient step on half the squared error."""
        y1, y2, d1, d2, outputs = self._passes()
        root_m = np.sqrt(outputs.shape[1])
        residual = outputs.sum(1, keepdims=True) / root_m - targets
        pull = (rate / root_m) * residual[..., None]
        self.first -= self._x.swapaxes(-1, -2) @ (pull * d1)
        self.second -= y1.swapaxes(-1, -2) @ (pull * d2)
        self.last -= y2.swapaxes(-1, -2) @ pull


def gram(rows: np.ndarray) -> np.ndarray:
    """Return the inner products of all pairs of rows."""
    return rows @ rows.swapaxes(-1, -2)


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Measure the relative change of the kernel, at t = 0 and after training."""
    shapes = {
        "m": [(m, settings.at_width) for m in settings.paths],
        "n": [(settings.at_paths, n) for n in settings.widths],
    }
    cases = [
        (name, along, m, n)
        for name in ACTIVATIONS
        for along, sizes in shapes.items()
        for m, n in sizes
    ]
    changes: dict[str, Any] = {name: {"m": [], "n": []} for name in ACTIVATIONS}
    data_rng, *rngs = generator(seed).spawn(1 + len(cases))
    data = _data(settings, data_rng)
    for (name, along, m, n), rng in zip(
        progress(cases, desc="theorem1", delay=1), rngs, strict=True
    ):
        key = f"{name} {along} {m} {n}"
        changes[name][along].append(points(key, _changes, settings, data, name, m, n, rng))
    return {"changes": changes}


def _data(settings: Settings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of every ensemble: the same ones for all sizes."""
    x = rng.standard_normal((settings.ensembles, 1, settings.examples, settings.inputs))
    x *= np.sqrt(settings.inputs) / np.linalg.norm(x, axis=-1, keepdims=True)
    return x, rng.standard_normal((settings.ensembles, 1, settings.examples))


def _changes(
    settings: Settings, data: tuple[np.ndarray, np.ndarray], name: str, m: int, n: int, rng: Any
) -> dict[str, Any]:
    x, targets = data
    nets = Ensembles(ACTIVATIONS[name], x, (settings.ensembles, m, n), rng)
    start, moment = nets.kernel(), 1e-4
    nets.step(moment, targets)
    instant = _size(nets.kernel() - start) / _size(start) / moment
    for _ in range(settings.steps):
        nets.step(settings.rate, targets)
    end = _size(nets.kernel() - start) / _size(start)
    return {"instant": mean_and_error(instant), "end": mean_and_error(end)}


def _size(kernels: np.ndarray) -> np.ndarray:
    return np.linalg.norm(kernels, axis=(1, 2))


def summarize(data: dict[str, Any]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Return each exponent and its standard error, by activation, time, and `"m"` or `"n"`."""
    sizes = {"m": data["settings"]["paths"], "n": data["settings"]["widths"]}
    found = {}
    for name, rows in data["changes"].items():
        for when in ("end", "instant"):
            for along, changes in rows.items():
                means, errors = np.array([change[when] for change in changes]).T
                found[name, when, along] = log_slope(sizes[along], means, errors)
    return found


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare the exponents of m and n with -1."""
    told = {"end": "after training", "instant": "at t = 0"}
    return [
        Check.within(f"{name}: exponent of {along} {told[when]}", -1.0, slope, error)
        for (name, when, along), (slope, error) in data["summary"].items()
        if (name, when) != ("relu", "end")  # Not covered by the theorem.
    ]


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    found = [slope for (name, _, _), (slope, _) in data["summary"].items() if name != "relu"]
    relu = data["summary"]["relu", "end", "m"][0]
    return (
        "With smooth activations the kernel's change falls with m and n with exponents "
        f"{max(found):.2f} to {min(found):.2f}, the theorem's -1; with ReLU, which it does not "
        f"cover, only with {relu:.2f}."
    )


def say(data: dict[str, Any]) -> str:
    """Return what was trained, and the exponents for ReLU."""
    slopes, settings = data["summary"], data["settings"]
    relu = {along: slopes["relu", "end", along] for along in ("m", "n")}
    return (
        f"Networks with two hidden layers learn {settings['examples']} examples by "
        f"{settings['steps']} steps of gradient descent at rate {settings['rate']:g}; the relative "
        "change of K is a mean over "
        f"{settings['ensembles']} ensembles, inputs and targets. The theorem is for smooth "
        "activations and the leading order. ReLU is not smooth: its kernel's rate of change at "
        "t = 0 follows the theorem, its change after training goes with exponent "
        f"{relu['m'][0]:.2f} ± {relu['m'][1]:.2f} of m and {relu['n'][0]:.2f} ± {relu['n'][1]:.2f} "
        "of n."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the change against m and against n."""
    settings = data["settings"]
    sizes = {"m": settings["paths"], "n": settings["widths"]}
    labels = {
        "m": f"paths m (n = {settings['at_width']})",
        "n": f"width n (m = {settings['at_paths']})",
    }
    axes = figure.subplots(1, 2, sharey=True)
    for ax, along in zip(axes, ("m", "n"), strict=True):
        x = np.array(sizes[along])
        for name, rows in data["changes"].items():
            means, errors = np.array([change["end"] for change in rows[along]]).T
            ax.errorbar(x, means, 2 * errors, fmt="o-", ms=4, lw=1, capsize=2, label=name)
            if name == "tanh":
                ax.plot(x, means[0] * x[0] / x, "--", color="black", lw=1, label="slope -1")
        ax.set_yscale("log")
        log_axis(ax, sizes[along], labels[along])
        ax.legend(frameon=False)
    axes[0].set_ylabel("|K after training - K before| / |K before|")
