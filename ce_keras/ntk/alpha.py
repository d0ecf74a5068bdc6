"""Algorithm 1: the constant of the variance law, for any module.

>>> from ce_keras.geometry import bottleneck
>>> fit = fit_alpha(bottleneck(width=256), draws=2000, seed=0)
>>> abs(fit.alpha - 1.60) < 3 * fit.alpha_error
True
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ce_keras import closed_form, files
from ce_keras.checks import positive_int
from ce_keras.geometry import Module, Stack
from ce_keras.ntk.samplers import chain_kernels, generator, stack_kernels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["closed_form", "sampler", "tape"]

logger = logging.getLogger("ce_keras")

# A second moment that rests on fewer draws than this hides its own tail.
_FEW = 30


@dataclass(frozen=True, eq=False, repr=False)
class AlphaFit:
    """A fitted variance law, and what it was fitted to.

    Attributes:
        module: name of what was fitted.
        method: how its kernels were had: `"closed_form"`, `"sampler"` or `"tape"`.
        draws: kernels drawn for each width; 0 for the closed form.
        alpha: the slope of log(E[K^2] / E[K]^2) against S: what `ce_keras.search` takes.
        alpha_error: its standard error.
        intercept: where the line meets S = 0; the law has 0.
        width: the widths that were looked at.
        inverse_fan_in: S of Eq. 9 at each width.
        log_ratio: log(E[K^2] / E[K]^2) at each width.
        log_ratio_error: its standard errors.
    """

    module: str
    method: Method
    draws: int
    alpha: float
    alpha_error: float
    intercept: float
    width: np.ndarray
    inverse_fan_in: np.ndarray
    log_ratio: np.ndarray
    log_ratio_error: np.ndarray

    @property
    def residuals(self) -> np.ndarray:
        """What the line leaves of `log_ratio`."""
        return self.log_ratio - self.intercept - self.alpha * self.inverse_fan_in

    @property
    def variance(self) -> np.ndarray:
        """Var(K) / E[K]^2 at each width, as measured."""
        return np.expm1(self.log_ratio)

    @property
    def misfit(self) -> np.ndarray:
        """The law's variance over the measured one, at each width."""
        return np.expm1(self.alpha * self.inverse_fan_in) / self.variance

    @property
    def holds(self) -> bool:
        """Whether the law's variance is within a tenth of the measured one, at every width.

        Two standard errors are added to the tenth. Where it does not hold, a search is better
        given the measured curve: `search(..., law=fit.table())`.
        """
        error = 2 * self.log_ratio_error * np.exp(self.log_ratio) / self.variance
        return bool((abs(np.log(self.misfit)) <= np.log(1.1) + error).all())

    def table(self) -> dict[int, tuple[float, float]]:
        """The measured variance and its standard error by width, as `search` takes for `law`."""
        errors = np.exp(self.log_ratio) * self.log_ratio_error
        rows = zip(self.width, self.variance, errors, strict=True)
        return {int(n): (float(v), float(e)) for n, v, e in rows}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the points with their errors, and the line.

        Args:
            ax: where to draw; a new figure if not given.
        """
        from ce_keras import plotting

        return plotting.alpha_fit(self, ax)

    def __repr__(self) -> str:
        how = "" if self.method == "closed_form" else f", {self.draws} draws for each width"
        law = "holds" if self.holds else "does not hold to a tenth of the variance"
        return (
            f"alpha = {self.alpha:.3f} ± {self.alpha_error:.3f} for {self.module}\n"
            f"  by {self.method.replace('_', ' ')}{how}; intercept {self.intercept:.3f}\n"
            f"  over widths {self.width[0]} to {self.width[-1]} the law {law} "
            f"(law's over measured variance: {self.misfit.min():.2f} to {self.misfit.max():.2f})"
        )


def fit_alpha(
    module: Module,
    ratios: Sequence[float] | None = None,
    draws: int = 2000,
    x1: np.ndarray | None = None,
    x2: np.ndarray | None = None,
    method: Literal["auto"] | Method = "auto",
    seed: int | None = None,
    checkpoint: str | Path | None = None,
) -> AlphaFit:
    """Fit the constant of the variance law to a module's kernel at initialisation (Algorithm 1).

    As in the paper, log(E[K^2] / E[K]^2) is fitted by a straight line in S, with an intercept,
    every width counting alike. A narrow, deep network's kernel has heavy tails: its second moment
    rests on few draws, and the standard error says so.

    Args:
        module: from `ce_keras.geometry`.
        ratios: widths to look at, as fractions of the module's; by default twelve widths, evenly
            spaced from 1 to the module's.
        draws: networks drawn for each width (T of Algorithm 1).
        x1: the input, `(inputs,)`, or `(positions, inputs)` where the module's first layer is
            applied at several positions; Gaussian by default.
        x2: the other input, of an off-diagonal entry; the same as `x1` by default.
        method: `"closed_form"`: exact, for a diagonal entry of fully connected ReLU modules.
            `"sampler"`: kernels drawn without the networks, for ReLU stacks such as the
            bottleneck block. `"tape"`: Algorithm 1 as printed, a Keras network for every draw.
            `"auto"`: the first of these that can.
        seed: for reproducible draws.
        checkpoint: a file that keeps the widths that are done; a later call with the same
            arguments goes on from there.

    Returns:
        The fit, which says what method it used.

    Raises:
        ValueError: for a method that does not apply, ratios that are not in (0, 1] or give fewer
            than two widths, inputs of the wrong shape, or a checkpoint of another fit.
    """
    stack = _checked_stack(module)
    widths = _checked_widths(module.width, ratios)
    draws = positive_int("draws", draws)
    method = _chosen_method(method, stack, x1, x2)
    s = np.asarray(module.inverse_fan_in(widths), dtype=float)
    if method == "closed_form":
        assert module.stack is not None
        sizes = [np.broadcast_to(n, widths.shape) for n in module.stack(widths).widths]
        points = np.log1p(closed_form.relative_variance(np.stack(sizes, axis=-1)))
        errors, draws = np.zeros(len(points)), 0
    else:
        rngs = generator(seed).spawn(len(widths) + 1)
        x = _inputs(stack, x1, x2, rngs[-1])
        key = {
            "module": module.name,
            "method": method,
            "draws": draws,
            "seed": seed,
            "x": x.tolist(),
        }
        points, errors = _measure(module, widths, x, draws, method, rngs, key, checkpoint)
    return _line(module.name, method, draws, widths, s, points, errors)


def _line(
    name: str,
    method: Method,
    draws: int,
    widths: np.ndarray,
    s: np.ndarray,
    points: np.ndarray,
    errors: np.ndarray,
) -> AlphaFit:
    """The least-squares line. It is linear in the points, so their errors carry over exactly."""
    slope = (s - s.mean()) / ((s - s.mean()) ** 2).sum()
    alpha = float(slope @ points)
    return AlphaFit(
        module=name,
        method=method,
        draws=draws,
        alpha=alpha,
        alpha_error=float(np.sqrt(slope**2 @ errors**2)),
        intercept=float(points.mean() - alpha * s.mean()),
        width=widths,
        inverse_fan_in=s,
        log_ratio=points,
        log_ratio_error=errors,
    )


def _measure(
    module: Module,
    widths: np.ndarray,
    x: np.ndarray,
    draws: int,
    method: Method,
    rngs: list[np.random.Generator],
    key: dict[str, Any],
    checkpoint: str | Path | None,
) -> tuple[np.ndarray, np.ndarray]:
    """log(E[K^2] / E[K]^2) and its standard error for each width, by draws."""
    from tqdm.auto import tqdm

    assert module.stack is not None
    done = _resumed(checkpoint, key)
    # Quick by sampler: no bar then, unless it takes a second after all.
    for n, rng in zip(tqdm(widths, desc="fit alpha", unit="width", delay=1), rngs, strict=False):
        if str(n) in done:
            continue
        stack = module.stack(int(n))
        if method == "tape":
            from ce_keras.ntk.algorithm_1 import tape_kernels

            kernels = tape_kernels(stack, x, draws, rng)
        elif len(x) == 1 and stack.positions == 1:
            kernels = chain_kernels(stack.widths, draws, seed=rng).sum(axis=1)
        else:
            kernels = stack_kernels(x, stack.widths, draws, seed=rng)[:, 0, -1]
        done[str(n)] = log_moment_ratio(kernels)
        if checkpoint is not None:
            files.write_json(checkpoint, {"of": key, "points": done})
    points, errors = np.array([done[str(n)] for n in widths]).T
    return points, errors


def log_moment_ratio(kernels: np.ndarray) -> tuple[float, float]:
    """log(E[K^2] / E[K]^2) from independent draws of K, and its standard error.

    The error is the delta method's. Where fewer than thirty draws carry the second moment, the
    sample hides its own tail; the error is then at least that of a log-normal with this ratio,
    which is what products of many layers tend to.

    Args:
        kernels: draws of one entry of the kernel, shape `(draws,)`.

    >>> log_moment_ratio(np.ones(10))
    (0.0, 0.0)
    """
    mean, squares = kernels.mean(), kernels**2
    second = squares.mean()
    ratio = float(np.log(second / mean**2))
    influence = squares / second - 2 * kernels / mean
    error = float(influence.std() / np.sqrt(len(kernels)))
    carrying = squares.sum() ** 2 / (squares**2).sum()
    if carrying < _FEW:
        log_normal = np.expm1(4 * ratio) - 4 * np.expm1(2 * ratio) + 4 * np.expm1(ratio)
        error = max(error, float(np.sqrt(log_normal / len(kernels))))
    return ratio, error


def _resumed(checkpoint: str | Path | None, key: dict[str, Any]) -> dict[str, Any]:
    if checkpoint is None or not Path(checkpoint).exists():
        return {}
    content = json.loads(Path(checkpoint).read_text())
    if content.get("of") != key:
        raise ValueError(
            f"checkpoint: {checkpoint} is of another fit; delete it, or give another file"
        )
    logger.info("%s: %d widths are done", checkpoint, len(content["points"]))
    return content["points"]


# Checks ------------------------------------------------------------------------------------------


def _checked_stack(module: Module) -> Stack:
    if not isinstance(module, Module):
        raise ValueError(f"module: got {module!r}; it must be a ce_keras.geometry.Module")
    if module.stack is None:
        raise ValueError(
            f"module: {module.name!r} is not described as a stack of ReLU layers (`stack`): "
            "kernels of it cannot be drawn"
        )
    return module.stack(module.width)


def _checked_widths(width: int, ratios: Sequence[float] | None) -> np.ndarray:
    if ratios is None:
        widths = np.unique(np.rint(np.linspace(1, width, 12)).astype(int))
    else:
        wrong = [ratio for ratio in ratios if not 0 < ratio <= 1]
        if wrong:
            raise ValueError(f"ratios: got {wrong[0]}; they are above 0, and at most 1")
        widths = np.unique(np.maximum(1, np.rint(np.array(ratios) * width)).astype(int))
    if len(widths) < 2:
        raise ValueError(
            f"ratios: got {ratios!r} for a module {width} wide; a line needs two widths or more"
        )
    return widths


def _chosen_method(method: str, stack: Stack, x1: Any, x2: Any) -> Method:
    exact = stack.positions == 1 and (x2 is None or np.array_equal(x1, x2))
    if method == "auto":
        return "closed_form" if exact else "sampler"
    if method not in ("closed_form", "sampler", "tape"):
        raise ValueError(
            f"method: got {method!r}; it must be 'auto', 'closed_form', 'sampler' or 'tape'"
        )
    if method == "closed_form" and not exact:
        raise ValueError(
            "method: the closed form is for a diagonal entry (x2=None) of fully connected "
            "modules; use 'sampler'"
        )
    return method  # type: ignore[return-value]


def _inputs(stack: Stack, x1: Any, x2: Any, rng: np.random.Generator) -> np.ndarray:
    """The one or two inputs, shape `(p, positions, inputs)`."""
    shape = (stack.positions, stack.inputs)
    if x1 is None and x2 is not None:
        raise ValueError("x1: needed too, since x2 is given")
    given = [rng.standard_normal(shape)] if x1 is None else [x for x in (x1, x2) if x is not None]
    for name, x in zip(("x1", "x2"), given, strict=False):
        if np.shape(x) != shape and np.shape(x) != shape[stack.positions == 1 :]:
            raise ValueError(f"{name}: got shape {np.shape(x)}; it must be {shape}")
    return np.stack([np.reshape(x, shape) for x in given])
