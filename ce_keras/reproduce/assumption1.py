"""Assumption 1: is log E[K^2]/E[K]^2 proportional to S, the sum of the inverse fan-ins?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.geometry import bottleneck, fully_connected
from ce_keras.ntk import AlphaFit, fit_alpha
from ce_keras.progress import progress
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.store import Points
from ce_keras.variance.samplers import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Assumption 1: the second moment of the kernel against S"

_INPUTS = 64
_PIXELS = 9

# Relative error of alpha, above which any law would seem to hold.
_TOO_UNCERTAIN = 0.2


class Settings(NamedTuple):
    """The settings.

    Attributes:
        draws: number of draws for each width, by sampler.
        network_draws: number of whole networks drawn for each width.
        width: the largest width.
        channels: channels of the bottleneck block.
        narrow: the least width in the second of the two fits.
    """

    draws: int = 100_000
    network_draws: int = 2000
    width: int = 256
    channels: int = 256
    narrow: int = 16


SCALES: dict[Scale, Settings] = {
    "small": Settings(draws=10_000, network_draws=300, width=128),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Fit the law to every module, over all widths and over the wide ones."""
    cases = _cases(settings, seed)
    return {
        "cases": {
            name: points(name, _case, case, settings)
            for name, case in progress(cases.items(), desc="assumption1", delay=1)
        }
    }


Fit = Callable[[list[float]], AlphaFit]


def _case(fit: Fit, settings: Settings) -> dict[str, Any]:
    widths = np.unique(np.rint(np.geomspace(1, settings.width, 14)))
    drawn = fit((widths / settings.width).tolist())
    return {"all": fit_data(drawn), "wide": fit_data(drawn.from_width(settings.narrow))}


def fit_data(fit: AlphaFit) -> dict[str, Any]:
    """Return a fit as plain numbers, with the misfit of the law and of the line."""
    line = np.expm1(fit.intercept + fit.alpha * fit.inverse_fan_in) / fit.variance
    return {
        "alpha": fit.alpha,
        "error": fit.alpha_error,
        "intercept": fit.intercept,
        "holds": fit.holds,
        "misfit": [float(fit.misfit.min()), float(fit.misfit.max())],
        # Misfit of the line with its intercept.
        "line_misfit": [float(ratio) for ratio in (line.min(), line.max())],
        "width": fit.width.tolist(),
        "s": fit.inverse_fan_in.tolist(),
        "log_ratio": fit.log_ratio.tolist(),
        "log_ratio_error": fit.log_ratio_error.tolist(),
    }


def _cases(settings: Settings, seed: int) -> dict[str, Fit]:
    base = settings.width
    rng = generator(seed)
    x = rng.standard_normal((2, _INPUTS))
    pixels = rng.standard_normal((2, _PIXELS, settings.channels))

    def dense(widths: list[int], **options: Any) -> Fit:
        module = fully_connected(_INPUTS, widths)
        return lambda ratios: fit_alpha(
            module, ratios, settings.draws, x1=x[0], seed=seed, **options
        )

    def block(**options: Any) -> Fit:
        module = bottleneck(settings.channels, base)
        return lambda ratios: fit_alpha(
            module, ratios, settings.draws, x1=pixels[0], seed=seed, method="sampler", **options
        )

    def network(*, skip: bool, norm: bool) -> Fit:
        return lambda ratios: fit_alpha(
            lambda n: residual_block(n, settings.channels, skip=skip, norm=norm),
            ratios,
            settings.network_draws,
            x1=pixels[0].reshape(3, 3, -1),
            seed=seed,
            method="ensemble",
            # Scale and shift of a normalisation count only in the standard parameterization.
            parameterization="standard" if norm else "ntk",
            width=base,
        )

    return {
        **{f"dense, {hidden} hidden layers": dense([base] * hidden) for hidden in (2, 5, 10)},
        "dense, widths n/4, n/2, n": dense([base // 4, base // 2, base]),
        "dense, widths n, n/4, n": dense([base, base // 4, base]),
        "dense, 3 hidden layers, off the diagonal": dense([base] * 3, x2=x[1], method="sampler"),
        "bottleneck": block(),
        "bottleneck, off the diagonal": block(x2=pixels[1]),
        "bottleneck with a skip": network(skip=True, norm=False),
        "bottleneck with BN, standard": network(skip=False, norm=True),
        "bottleneck with skip and BN, standard": network(skip=True, norm=True),
    }


def residual_block(n: int, channels: int, side: int = 3, *, skip: bool, norm: bool) -> Any:
    """Return the bottleneck block as a Keras network on `side` times `side` pixels."""
    import keras
    from keras import layers

    def conv(x: Any, filters: int, size: int, *, last: bool = False) -> Any:
        kind = "lecun_normal" if last else "he_normal"
        x = layers.Conv2D(filters, size, padding="same", use_bias=False, kernel_initializer=kind)(x)
        if norm:
            x = layers.BatchNormalization()(x)
        return x if last else layers.ReLU()(x)

    inputs = keras.Input((side, side, channels))
    x = conv(conv(inputs, n, 1), n, 3)
    x = conv(x, channels, 1, last=True)
    return keras.Model(inputs, layers.Add()([inputs, x]) if skip else x)


def compare(data: dict[str, Any]) -> list[Check]:
    """Return, for each fit, whether the law is within a tenth of the measured variance."""
    checks = []
    for name, case in data["cases"].items():
        for which, told in (("all", "from 1"), ("wide", f"from {data['settings']['narrow']}")):
            fit = case[which]
            low, high = fit["misfit"]
            line = fit["line_misfit"]
            certain = fit["error"] <= _TOO_UNCERTAIN * abs(fit["alpha"])
            checks.append(
                Check(
                    f"{name}: widths {told}",
                    "law holds",
                    f"alpha {fit['alpha']:.2f} ± {fit['error']:.2f}; over the measured variance: "
                    f"law {low:.2f} to {high:.2f}, line with intercept {line[0]:.2f} to "
                    f"{line[1]:.2f}",
                    fit["holds"] if certain or not fit["holds"] else None,
                )
            )
    return checks


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    total, held = len(data["cases"]), _held(data)
    return (
        f"Fitted over all widths, the law holds for {held['all']} of {total} modules; from width "
        f"{data['settings']['narrow']} on, for {held['wide']}: it bends where paths are narrow."
    )


def _held(data: dict[str, Any]) -> dict[str, int]:
    """Return the number of modules for which the law holds, by range of widths."""
    return {
        which: sum(case[which]["holds"] for case in data["cases"].values())
        for which in ("all", "wide")
    }


def say(data: dict[str, Any]) -> str:
    """Return where the law holds, and why it bends."""
    del data
    return (
        "The law is counted as holding where exp(alpha S) - 1 is within a tenth of the measured "
        "variance at every width, two standard errors being added. It bends at very narrow "
        "paths: log E[K²]/E[K]² grows more slowly than S "
        "there, so a line through all widths is too flat for the wide ones. The paper's S of the "
        "bottleneck counts its first layer, whose fan-in is fixed and which adds nothing to the "
        "variance, so the law is too large for wide paths; a line with an intercept, as the paper "
        "fitted, is not. Batch normalisation is "
        "as at inference, where at initialisation it changes nothing but adds a scale and a shift "
        "to the variables; a skip without weights adds nothing to the kernel."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the points with two standard errors, and the lines through the wide ones."""
    axes = figure.subplots(1, 2)
    for ax, kind in zip(axes, ("dense", "bottleneck"), strict=True):
        shown = {name: case for name, case in data["cases"].items() if name.startswith(kind)}
        for index, (name, case) in enumerate(shown.items()):
            s, y, error = (
                np.array(case["all"][key]) for key in ("s", "log_ratio", "log_ratio_error")
            )
            color = f"C{index}"
            ax.plot(s, y, ".-", color=color, lw=0.8, label=name)
            ax.fill_between(s, y - 2 * error, y + 2 * error, color=color, alpha=0.2, lw=0)
            ax.plot(s, case["wide"]["alpha"] * s, ":", color=color, lw=1)
        ax.set_xscale("log")
        ax.set_yscale("log")
        points = np.concatenate([case["all"]["log_ratio"] for case in shown.values()])
        ax.set_ylim(0.7 * points.min(), 1.6 * points.max())  # Not widened by large errors.
        ax.set_xlabel("S, the sum of 1/fan-in")
        ax.set_title("dotted: the law, alpha fitted to the wide ones", fontsize=9)
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_ylabel("log(E[K²]/E[K]²)")
