"""Two laws fitted to narrow blocks, against wide blocks that were drawn too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.progress import progress
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.store import Points
from ce_keras.variance import fit_alpha

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

TITLE = "What a fit to narrow blocks predicts for wide ones"

#: The blocks, by what differs from the plain bottleneck block read at its middle pixel.
BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two blocks with skips": {"blocks": 2},
    "normalisation": {"normalised": True},
    "GELU": {"activation": "gelu"},
    "squeeze-and-excite": {"squeezed": True},
    "5x5 kernel": {"kernel": 5},
    "pooled output": {"pooled": True},
}

# Standard errors that a prediction may be away: a false alarm once in 370 predictions.
_ERRORS = 3.0


class Settings(NamedTuple):
    """The settings.

    Attributes:
        narrow: widths that the laws are fitted to.
        wide: widths that they predict.
        draws: number of random blocks for each narrow width.
        wide_draws: for each wide one.
        channels: of the block's input and output.
        size: sides of its Gaussian input.
    """

    narrow: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    wide: tuple[int, ...] = (32, 64, 128, 256)
    draws: int = 10_000
    wide_draws: int = 1000
    channels: int = 64
    size: int = 5


SCALES: dict[Scale, Settings] = {
    "small": Settings(wide=(32, 64), draws=2000, wide_draws=500),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Return the variance of wide blocks as drawn, and as both laws predict it from narrow ones."""
    bar = progress(BLOCKS.items(), desc="fit_prediction", delay=1)
    return {
        "blocks": {name: points(name, _predicted, settings, seed, block) for name, block in bar}
    }


def _predicted(settings: Settings, seed: int, block: dict[str, Any]) -> dict[str, Any]:
    widest = max(settings.narrow + settings.wide)
    build, options = _block(settings, **block)

    def fit(widths: tuple[int, ...], draws: int, own_seed: int) -> Any:
        ratios = [width / widest for width in widths]
        return fit_alpha(build, ratios, draws, seed=own_seed, width=widest, **options)

    x = np.random.default_rng(seed).standard_normal((settings.size,) * 2 + (settings.channels,))
    options["x1"] = x
    narrow = fit(settings.narrow, settings.draws, 2 * seed)
    wide = fit(settings.wide, settings.wide_draws, 2 * seed + 1)
    law = narrow.polynomial
    error = np.exp(wide.log_ratio) * wide.log_ratio_error
    return {
        "alpha": narrow.alpha,
        "coefficients": law.coefficients.tolist(),
        "chi_square": law.chi_square,
        "degrees_of_freedom": law.degrees_of_freedom,
        "narrow": [*narrow.table().items()],
        "wide": [
            [float(value) for value in row]
            for row in zip(
                wide.width,
                wide.variance,
                error,
                law.path_variance(wide.width),
                law.error(wide.width),
                np.expm1(narrow.alpha * wide.inverse_fan_in),
                strict=True,
            )
        ],
    }


def summarize(data: dict[str, Any]) -> dict[str, Any]:
    """Return by block, for every wide width, the distance of both laws in standard errors."""
    return {
        name: [
            {
                "width": int(n),
                "polynomial": (law - drawn) / np.hypot(error, law_error),
                "exponential": (exponential - drawn) / error,
                "ratio": exponential / drawn,
            }
            for n, drawn, error, law, law_error, exponential in block["wide"]
        ]
        for name, block in data["blocks"].items()
    }


def compare(data: dict[str, Any]) -> list[Check]:
    """Return a row for every block and wide width: as drawn, and as both laws predict it."""
    return [
        Check(
            f"{name}, width {row['width']}",
            None,
            f"drawn {drawn:.4f} ± {error:.4f}; polynomial {law:.4f} ± {law_error:.4f} "
            f"({row['polynomial']:+.1f} standard errors); exp(alpha S) - 1 {exponential:.4f} "
            f"({row['exponential']:+.1f})",
            None,
        )
        for name, rows in data["summary"].items()
        for row, (_, drawn, error, law, law_error, exponential) in zip(
            rows, data["blocks"][name]["wide"], strict=True
        )
    ]


def verdict(data: dict[str, Any]) -> str:
    """Return how many predictions of each law are within three standard errors."""
    rows = [row for block in data["summary"].values() for row in block]
    held = {
        law: sum(bool(abs(row[law]) <= _ERRORS) for row in rows)
        for law in ("polynomial", "exponential")
    }
    return (
        f"Of {len(rows)} predictions, {held['polynomial']} of the polynomial and "
        f"{held['exponential']} of the exponential law are within {_ERRORS:g} standard errors of "
        "what was drawn."
    )


def say(data: dict[str, Any]) -> str:
    """Return how both laws were fitted, and where each of them fails."""
    settings, summary = data["settings"], data["summary"]
    rows = [row for block in summary.values() for row in block]
    failed = sorted(
        name
        for name, block in summary.items()
        if any(abs(row["polynomial"]) > _ERRORS for row in block)
    )
    ratios = [row["ratio"] for row in rows]
    return (
        f"Both laws are fitted to {settings['draws']:,} draws at each of the widths "
        f"{settings['narrow'][0]} to {settings['narrow'][-1]}: a polynomial in 1/n without a "
        "constant, of the lowest order that chi-square allows, and the paper's exp(alpha S) - 1. "
        f"The wide blocks are drawn {settings['wide_draws']:,} times each. The exponential law is "
        f"{min(ratios):.2f} to {max(ratios):.2f} times what is drawn. The polynomial fails for "
        f"{', '.join(failed) or 'no block'}. Two blocks have {settings['channels']} channels "
        "between them and squeeze-and-excite 8 units in its gate, which do not widen with n: their "
        "part of the variance is a constant, and neither law has one. Normalisation is of each "
        "channel over the image, as batch normalisation does in training with a batch of one; in "
        "inference the variance of an untrained block is the plain one's, because its statistics "
        "are constants."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw each law's prediction over the measurement, with two standard errors."""
    axes = figure.subplots(1, 2, sharey=True)
    for index, (name, block) in enumerate(data["blocks"].items()):
        n, drawn, error, law, law_error, exponential = np.array(block["wide"]).T
        beside = n * 1.06 ** (index - len(data["blocks"]) / 2)
        style: dict[str, Any] = {"fmt": "o", "ms": 4, "capsize": 2, "label": name}
        axes[0].errorbar(beside, law / drawn, 2 * np.hypot(error, law_error) / drawn, **style)
        axes[1].errorbar(beside, exponential / drawn, 2 * error / drawn, **style)
    for ax, title in zip(axes, ("polynomial in 1/n", "exp(alpha S) - 1"), strict=True):
        ax.axhline(1, color="gray", lw=1)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
        ax.set_xticks(n, [f"{width:g}" for width in n])
        ax.minorticks_off()
        ax.set_xlabel("width n of a path")
        ax.set_title(title, fontsize=11)
    axes[0].set_ylabel("predicted over drawn variance")
    axes[0].legend(frameon=False, fontsize=8)


def _block(
    settings: Settings,
    blocks: int = 1,
    kernel: int = 3,
    activation: str = "relu",
    normalised: bool = False,
    squeezed: bool = False,
    pooled: bool = False,
) -> tuple[Callable[[int], keras.Model], dict[str, Any]]:
    """Return a function from a width to the block, and further arguments of `fit_alpha`."""
    from keras import Input, Model, layers, ops

    from ce_keras.layers.initializers import kernel_initializer

    def convolution(x: Any, filters: int, size: int = 1, gain: float = 2.0) -> Any:
        return layers.Conv2D(
            filters,
            size,
            padding="same",
            use_bias=False,
            kernel_initializer=kernel_initializer(gain=gain),
        )(x)

    def hidden(x: Any, filters: int, size: int = 1) -> Any:
        x = convolution(x, filters, size)
        if normalised:  # Each channel by itself: batch normalisation in training, of one image.
            x = layers.GroupNormalization(groups=-1)(x)
        return layers.Activation(activation)(x)

    def build(n: int) -> keras.Model:
        inputs = x = Input((settings.size, settings.size, settings.channels))
        for index in range(blocks):
            branch = convolution(hidden(hidden(x, n), n, kernel), settings.channels, gain=1.0)
            if squeezed:
                gate = layers.GlobalAveragePooling2D(keepdims=True)(branch)
                gate = layers.Activation("relu")(convolution(gate, 8))
                gate = layers.Activation("sigmoid")(convolution(gate, settings.channels, gain=1.0))
                branch = layers.Multiply()([branch, gate])
            x = branch if blocks == 1 else layers.Add()([x, branch])
            if index < blocks - 1:
                x = layers.Activation(activation)(x)
        return Model(inputs, x)

    options: dict[str, Any] = {"method": "ensemble"}
    if pooled:
        options["readout"] = lambda outputs: ops.mean(outputs[..., 0], axis=(1, 2))
    return build, options
