"""Attention as an ensemble of heads: the variance of its kernel against the width of a head."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.checks import finite_number
from ce_keras.progress import progress
from ce_keras.reproduce.plots import log_axis
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.store import Points
from ce_keras.variance.attention import block_kernels, head_kernels
from ce_keras.variance.fit import log_moment_ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Attention: the width of a head"

#: What is read, and how `block_kernels` normalises it: the layer alone, or a block of the layer and
#: a perceptron, with residual connections.
PARTS = {
    "layer": "layer",
    "block": "none",
    "block, normalised before": "before",
    "block, normalised after": "after",
}

# Standard errors of a difference that is taken for one.
_ERRORS = 3.0


class Settings(NamedTuple):
    """The settings.

    Attributes:
        widths: of a head; each divides `total`.
        total: width of all heads together, and channels of a token.
        lengths: numbers of tokens.
        correlations: of any two tokens.
        draws: number of random layers for each width.
        block_draws: of random blocks.
    """

    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    total: int = 128
    lengths: tuple[int, ...] = (8, 256)
    correlations: tuple[float, ...] = (0.0, 0.5)
    draws: int = 50_000
    block_draws: int = 500


SCALES: dict[Scale, Settings] = {
    "small": Settings(draws=5000, block_draws=50),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Return the variance of the kernel at one position, for every part, input and width."""
    for correlation in settings.correlations:
        finite_number("settings.correlations", correlation, 0, most=1)
    if wrong := [n for n in settings.widths if settings.total % n]:
        raise ValueError(f"settings.widths: {wrong[0]} does not divide total, {settings.total}")
    widths: tuple[int | None, ...] = (*settings.widths, None)  # `None` is the limit.
    todo = [*itertools.product(PARTS, settings.lengths, settings.correlations, widths)]
    seeds = np.random.SeedSequence(seed).spawn(len(todo))
    data: dict[str, Any] = {"rows": {}, "limits": {}}
    bar = progress(zip(todo, seeds, strict=True), "attention", len(todo), delay=1)
    for (part, length, correlation, n), own in bar:
        name = f"{part}; {length} tokens; correlation {correlation:g}"
        arguments = settings, seed, part, length, correlation, n, np.random.default_rng(own)
        if n is not None:
            row = points(f"{name}; {n}", _point, *arguments)
            data["rows"].setdefault(name, []).append([n, *row])
        elif part == "layer":
            data["limits"][name] = points(f"{name}; limit", _point, *arguments)[0]
    return data


def _point(
    settings: Settings,
    seed: int,
    part: str,
    length: int,
    correlation: float,
    n: int | None,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return Var(K) / E[K]^2 of heads of width n, of one head in the limit; and its error."""
    tokens = np.random.default_rng([seed, length])
    own = tokens.standard_normal((length, settings.total))
    common = tokens.standard_normal(settings.total)
    x = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * common
    heads = 1 if n is None else settings.total // n
    if part == "layer":
        # Heads are independent, and their sum is divided by sqrt(heads): the variance is one's.
        ratio, error = log_moment_ratio(head_kernels(x, n, settings.draws, rng))
        return float(np.expm1(ratio)) / heads, float(np.exp(ratio) * error) / heads
    assert n is not None
    kernels = block_kernels(x, heads, n, PARTS[part], settings.block_draws, rng)
    ratio, error = log_moment_ratio(kernels)
    return float(np.expm1(ratio)), float(np.exp(ratio) * error)


def summarize(data: dict[str, Any]) -> dict[str, Any]:
    """Return for each case the best width, those as good, and usual widths over the least."""
    found = {}
    for name, rows in data["rows"].items():
        n, variance, error = np.array(rows).T
        best = int(np.argmin(variance))
        worse = variance - variance[best] > _ERRORS * np.hypot(error, error[best])
        over = dict(zip(map(int, n), (variance / variance[best]).tolist(), strict=True))
        found[name] = {
            "best": int(n[best]),
            "as_good": [int(each) for each in n[~worse]],
            "interior": bool(worse[0] and worse[-1]),
            "over_least": {width: over[width] for width in (64, 128) if width in over},
        }
    return found


def compare(data: dict[str, Any]) -> list[Check]:
    """Return a row for each case."""
    checks = []
    for name, case in data["summary"].items():
        parts = [f"{x:.2f} times that at {n}" for n, x in case["over_least"].items()]
        if name in data["limits"]:
            parts.append(f"limit of one head {data['limits'][name]:.4f}")
        as_good = ", ".join(map(str, case["as_good"]))
        ours = "; ".join([f"least at {case['best']} (as good: {as_good})", *parts])
        checks.append(Check(name, None, ours, None))
    return checks


def verdict(data: dict[str, Any]) -> str:
    """Return where there is an interior optimum, and what usual widths have beside it."""
    cases = data["summary"].values()
    best = sorted({case["best"] for case in cases if case["interior"]})
    count = sum(case["interior"] for case in cases)
    where = f" (of width {', '.join(map(str, best))})" if best else ""
    over = {n: [c["over_least"][n] for c in cases if n in c["over_least"]] for n in (64, 128)}
    usual = [f"{min(x):.2f} to {max(x):.2f} times the least at {n}" for n, x in over.items() if x]
    return (
        f"At fixed total width, heads between the narrowest and the widest have the least variance "
        f"of the kernel in {count} of {len(cases)} cases{where}; the variance is "
        f"{' and '.join(usual) or 'not measured at 64 and 128'}."
    )


def say(data: dict[str, Any]) -> str:
    """Return what was measured, and what the figures do not say."""
    settings = data["settings"]
    return (
        f"Heads are paths: at a total width of {settings['total']} there are {settings['total']}/n "
        "of width n, and as each costs 4 d n weights, all of these designs have one size. The "
        "kernel is of one output at the middle position, at one input of Gaussian tokens with a "
        "given correlation, over random weights in the NTK parameterisation. The layer's is drawn "
        f"{settings['draws']:,} times for each width, the block's {settings['block_draws']:,} "
        f"times; a width is as good as the best within {_ERRORS:g} standard errors. A block's "
        "kernel is the perceptron's as well, which dilutes what the heads do. Nothing was trained, "
        "tokens of real sequences are not Gaussian, and the score has the usual factor 1/sqrt(n)."
    )


def details(data: dict[str, Any]) -> str:
    """Return what can be derived of the layer's variance."""
    del data
    return r"""## What can be derived

Let $G$ be the tokens' Gram matrix over $d$, $p$ the position that is read, $t$ and $u$ independent
Gaussian vectors of covariance $G$, and each $\chi^2$ an independent chi-square over $n$, of $n$
degrees of freedom or, primed, $n - 1$. With $a = \mathrm{softmax}(\sqrt{G_{pp} \chi^2_q}\, t)$ and
$g_j = \sqrt{\chi^2_w}\, a_j (u_j - a \cdot u)$, the kernel of one head is distributed exactly as

$$K = \chi^2_w\, a^T G a + \frac{(a \cdot u)^2}{n} + \chi'^2_o\, a^T G a + G_{pp} \chi^2_q\, g^T G g
+ G_{pp} \left( \frac{(g \cdot t)^2}{n} + \chi'^2_k\, g^T G g \right),$$

by the weights of values, output, keys and queries. Heads are independent, so $D / n$ of them have a
relative variance of $n v(n) / D$, where $v(n)$ is one head's. As $n$ grows the chi-squares tend to
1, but $a$ stays random, because scores over $\sqrt{n}$ do: $v$ tends to a limit $c$, not to 0, and
$n v(n)$ in the end grows as $c\, n$. The limit is small where a sum over tokens averages it: long
sequences, and tokens that have much in common. For identical tokens $g^T G g = 0$ and $n v(n) = 1$
at every width. There is an interior optimum where $n v(n)$ falls first."""


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the variance against the width of a head, with two standard errors."""
    inputs = list(dict.fromkeys(name.partition("; ")[2] for name in data["rows"]))
    axes = figure.subplots(1, len(inputs), sharey=True, squeeze=False)[0]
    for ax, title in zip(axes, inputs, strict=True):
        for part in PARTS:
            n, variance, error = np.array(data["rows"][f"{part}; {title}"]).T
            ax.errorbar(n, variance, 2 * error, fmt="o-", ms=3, lw=1, capsize=2, label=part)
        ax.set_yscale("log")
        ax.set_title(title.replace("; ", ",\n"), fontsize=9)
        log_axis(ax, data["settings"]["widths"], "width n of a head")
    axes[0].set_ylabel("Var(K) / E[K]²")
    axes[0].legend(frameon=False, fontsize=7)
