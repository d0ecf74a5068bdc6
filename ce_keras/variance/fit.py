"""Algorithm 1: the constant of the variance law, for any module.

>>> from ce_keras.geometry import bottleneck
>>> fit = fit_alpha(bottleneck(width=256), draws=2000, seed=0)
>>> abs(fit.alpha - 1.60) < 3 * fit.alpha_error
True
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ce_keras.checks import (
    Parameterization,
    brief,
    checked_parameterization,
    checked_seed,
    file_path,
    function,
    one_of,
    positive_int,
    real_array,
)
from ce_keras.geometry import Module
from ce_keras.progress import progress
from ce_keras.resumable import ResumableResults
from ce_keras.variance.alpha_fit import AlphaFit, Method, line
from ce_keras.variance.closed_form import kernel_moments, slopes_of
from ce_keras.variance.families import NetworkFamily, family_of, inputs_of
from ce_keras.variance.samplers import chain_kernels, generator, stack_kernels

if TYPE_CHECKING:
    import keras

#: A function from a width and a generator to independent draws of one entry of the kernel.
Draw = Callable[[int, np.random.Generator], np.ndarray]

# With fewer draws than this carrying the second moment, their scatter understates its error.
_FEW = 30


def fit_alpha(
    module: Module | Callable[[int], keras.Model],
    ratios: Sequence[float] | None = None,
    draws: int = 2000,
    x1: np.ndarray | None = None,
    x2: np.ndarray | None = None,
    readout: Callable[[Any], Any] | None = None,
    method: Literal["auto"] | Method = "auto",
    seed: int | None = None,
    *,
    width: int | None = None,
    parameterization: Parameterization = "ntk",
    checkpoint: str | Path | None = None,
) -> AlphaFit:
    """Fit the constant of the variance law to a module's kernel at initialisation (Algorithm 1).

    As in the paper, log(E[K^2] / E[K]^2) is fitted by a straight line in S with an intercept, and
    every width has the same weight. The kernel of a narrow, deep network has heavy tails: few
    draws carry its second moment, and the standard error is larger accordingly.

    Args:
        module: from `ce_keras.geometry`; or a function from a width to a Keras model of one
            input and one output, which needs `width`. S is then read from the model's layers.
        ratios: widths to fit, as fractions of the module's; by default twelve widths, evenly
            spaced from 1 to the module's.
        draws: networks drawn for each width (T of Algorithm 1).
        x1: the input, of the model's input shape; `(inputs,)`, or `(positions, inputs)`, for a
            module whose first layer is applied at several positions. Gaussian by default.
        x2: the other input, of an off-diagonal entry; the same as `x1` by default.
        readout: for Keras models, the scalar output whose kernel is fitted: a function from the
            outputs of several networks, `(networks, ...)`, to one number of each, `(networks,)`.
            By default the first unit at the middle position.
        method: `"closed_form"`: exact, for a diagonal entry of fully connected ReLU modules.
            `"sampler"`: kernels drawn without the networks, for ReLU stacks such as the
            bottleneck block. `"ensemble"`: Keras networks, the draws being the paths of one
            collegial ensemble; every layer needs a grouped form and an initialiser of Keras' own.
            `"tape"`: Algorithm 1 as printed, a Keras network built for every draw. `"auto"`: the
            first of these that applies.
        seed: for reproducible draws; a checkpoint needs one. With `"tape"`, a model that Keras
            cannot rebuild from its configuration is drawn by its own function, without the seed.
        width: the baseline's width, if `module` is a function.
        parameterization: `"ntk"`: every weight's gradient is multiplied by the standard deviation
            of the weight's initial distribution, which gives the kernel of the NTK parameterisation
            (Eq. 3); weights that start at a constant, such as biases, contribute nothing.
            `"standard"`: all trainable variables as they are.
        checkpoint: a file that keeps the finished widths; a later call with the same arguments
            goes on from there.

    Returns:
        The fit, with the method it used.

    Raises:
        ValueError: for a method that does not apply, ratios that are not in (0, 1] or give fewer
            than two widths, inputs of the wrong shape, a layer whose fan-in is not known, or a
            checkpoint of another fit.
    """
    family = family_of(module, width)
    widths = _checked_widths(family.width, ratios)
    if positive_int("draws", draws) < 2:
        raise ValueError(f"draws: got {draws!r}; a variance needs 2 or more")
    checked_parameterization(parameterization)
    if readout is not None:
        function("readout", readout, "a function of the outputs")
    seed = checked_seed(seed)
    if checkpoint is not None and file_path("checkpoint", checkpoint).is_dir():
        raise ValueError(f"checkpoint: {checkpoint} is a folder; name a file")
    if checkpoint is not None and seed is None:
        raise ValueError("seed: needed with a checkpoint: the draws must be the same to go on")
    method = _chosen_method(method, family, x1, x2, readout)
    rngs = generator(seed).spawn(len(widths) + 1)
    x = inputs_of(family, x1, x2, rngs[-1])
    s = np.asarray(family.inverse_fan_in(widths), dtype=float)
    if np.ptp(s) == 0:
        raise ValueError(
            f"module: S is {s[0]:.4g} at every width of {family.name!r}; the width must be the "
            "fan-in of a layer"
        )
    if method == "closed_form":
        points, errors, draws = _exact(family, widths, parameterization), np.zeros(len(s)), 0
    else:
        path = None if checkpoint is None else Path(checkpoint)
        key = {
            "module": family.name,
            "method": method,
            "widths": widths.tolist(),
            "draws": draws,
            "seed": seed,
            "parameterization": parameterization,
            "x": x.tolist(),
            "networks": None if path is None else _network_key(family, widths, x, readout),
        }
        draw = _draw_function(family, x, draws, method, readout, parameterization)
        results = ResumableResults(path, key, "checkpoint", "another fit")
        points, errors = _measure(draw, widths, rngs, results)
    return AlphaFit(
        module=family.name,
        method=method,
        draws=draws,
        **line(s, points, errors),
        width=widths,
        inverse_fan_in=s,
        log_ratio=points,
        log_ratio_error=errors,
        parameterization=parameterization,
    )


def _network_key(family: NetworkFamily, widths: np.ndarray, x: np.ndarray, readout: Any) -> Any:
    """Return values that differ for two modules, or two functions that build other networks."""
    if family.stack is not None:
        stacks = map(family.stack, widths.tolist())
        return [[*map(float, each.widths), *slopes_of(each.activation)] for each in stacks]
    from ce_keras.variance.networks import middle_unit, network_key

    return network_key(family.build(family.width), x, readout or middle_unit)


def _exact(
    family: NetworkFamily, widths: np.ndarray, parameterization: Parameterization
) -> np.ndarray:
    assert family.stack is not None
    moments = [
        kernel_moments(stack.widths, parameterization, stack.inputs, activation=stack.activation)
        for stack in map(family.stack, widths)
    ]
    return np.log1p([moment.relative_variance for moment in moments])


def _draw_function(
    family: NetworkFamily,
    x: np.ndarray,
    draws: int,
    method: Method,
    readout: Callable[[Any], Any] | None,
    parameterization: Parameterization,
) -> Draw:
    """Return a function from a width and a generator to draws of K(x[0], x[-1])."""
    if method == "sampler":
        return functools.partial(_sampled, family, x, draws, parameterization)
    from ce_keras.variance import networks

    kernels = {"ensemble": networks.ensemble_kernels, "tape": networks.tape_kernels}[method]
    readout = readout or networks.middle_unit
    return lambda width, rng: kernels(
        functools.partial(family.build, width), x, draws, rng, readout, parameterization == "ntk"
    )


def _sampled(
    family: NetworkFamily,
    x: np.ndarray,
    draws: int,
    parameterization: Parameterization,
    width: int,
    rng: np.random.Generator,
) -> np.ndarray:
    assert family.stack is not None
    stack = family.stack(width)
    how: dict[str, Any] = {"parameterization": parameterization, "seed": rng}
    if len(x) == 1 and stack.positions == 1:
        return chain_kernels(stack.widths, draws, inputs=stack.inputs, **how).sum(axis=1)
    return stack_kernels(x, stack.widths, draws, **how)[:, 0, -1]


def _measure(
    draw: Draw, widths: np.ndarray, rngs: list[np.random.Generator], results: ResumableResults
) -> tuple[np.ndarray, np.ndarray]:
    """Return log(E[K^2] / E[K]^2) and its standard error for each width, by draws."""
    # The delay hides the bar of the sampler, which takes a second.
    for n, rng in progress(
        zip(map(int, widths), rngs, strict=False), "fit alpha", len(widths), unit="width", delay=1
    ):
        if str(n) in results.done:
            continue
        kernels = draw(n, rng)
        if not kernels.any():  # A layer normalisation of one unit gives zeros.
            raise ValueError(f"ratios: at width {n} the kernel is 0; leave that width out")
        results.keep(str(n), log_moment_ratio(kernels))
    points, errors = np.array([results.done[str(n)] for n in widths]).T
    return points, errors


def log_moment_ratio(kernels: np.ndarray) -> tuple[float, float]:
    """Return log(E[K^2] / E[K]^2) from independent draws of K, and its standard error.

    The error is the delta method's. If fewer than thirty draws carry the second moment, the sample
    misses the tail of the distribution; the error is then at least that of a log-normal with this
    ratio, the distribution that products of many layers tend to.

    Args:
        kernels: draws of one entry of the kernel, shape `(draws,)`.

    >>> log_moment_ratio(np.ones(10))
    (0.0, 0.0)
    """
    kernels = real_array("kernels", kernels)
    if kernels.ndim != 1 or len(kernels) < 2 or not kernels.sum():
        raise ValueError(
            f"kernels: got shape {kernels.shape}; it must be two draws or more, `(draws,)`, whose "
            "mean is not 0"
        )
    kernels = kernels / abs(kernels).max()  # Whose squares are finite.
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


def _checked_widths(width: int, ratios: Sequence[float] | None) -> np.ndarray:
    if ratios is None:
        wanted = np.linspace(1, width, 12)
    else:
        given = np.atleast_1d(real_array("ratios", ratios))
        if given.ndim > 1:
            raise ValueError(f"ratios: got shape {given.shape}; it must be a list of numbers")
        wrong = given[(given <= 0) | (given > 1)]
        if wrong.size:
            raise ValueError(f"ratios: got {wrong[0]}; they are above 0, and at most 1")
        wanted = given * width
    widths = np.unique(np.maximum(1, np.rint(wanted)).astype(int))
    if len(widths) < 2:
        raise ValueError(
            f"ratios: got {brief(ratios)} for a module {width} wide; a line needs two widths or "
            "more"
        )
    return widths


def _chosen_method(method: str, family: NetworkFamily, x1: Any, x2: Any, readout: Any) -> Method:
    one_of("method", method, ("auto", *get_args(Method)))
    if family.stack is None:
        return _chosen_for_networks(method, family)
    if readout is not None:
        raise ValueError("readout: is for Keras models; a module of geometry has one output")
    stack = family.stack(family.width)
    exact = stack.positions == 1 and (x2 is None or np.array_equal(x1, x2))
    is_relu = slopes_of(stack.activation) == slopes_of("relu")
    if method == "sampler" and not is_relu:
        raise ValueError(
            f"method: the sampler draws ReLU networks, and the activation of {family.name!r} is "
            f"{stack.activation!r}; use 'ensemble'"
        )
    if method == "closed_form" and not exact:
        raise ValueError(
            "method: the closed form is for a diagonal entry (x2=None) of fully connected "
            "modules; use 'sampler'"
        )
    if method == "auto":
        return "closed_form" if exact else "sampler" if is_relu else "ensemble"
    return method  # type: ignore[return-value]


def _chosen_for_networks(method: str, family: NetworkFamily) -> Method:
    """Return the method for a function that builds Keras models."""
    if method == "tape":
        return "tape"
    if method in ("closed_form", "sampler"):
        raise ValueError(f"method: {method!r} is for the modules of geometry; use 'ensemble'")
    from ce_keras.variance.networks import why_not_grouped

    reason = why_not_grouped(functools.partial(family.build, family.width))
    if reason is not None and method == "ensemble":
        raise ValueError(f"method: 'ensemble' cannot be, since {reason}; use 'tape'")
    return "ensemble" if reason is None else "tape"
