"""Variance laws: Var(K) / E[K]^2 of one path's tangent kernel as a function of its width.

For one path, E[K^2] / E[K]^2 = exp(alpha * S) for every entry K of the kernel, with S the sum
of 1 / fan_in over its layers (Assumption 1; Eq. 9). The m paths of a collegial ensemble are
independent, and the ensemble's kernel is their mean: its variance is m times smaller (Eq. 11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ce_keras.checks import brief, called, finite_number, instance, real_array, real_values
from ce_keras.geometry import Module
from ce_keras.variance.closed_form import (
    MOST_COEFFICIENTS,
    gram_of,
    relative_variance,
    variance_coefficients,
)
from ce_keras.variance.correlation import mean_correlation


def second_moment(alpha: float, inverse_fan_in: Any, cardinality: Any = 1) -> Any:
    """Return E[K^2] / E[K]^2 of an ensemble of `cardinality` paths.

    Args:
        alpha: the law's constant for the module.
        inverse_fan_in: S of one path, from `Module.inverse_fan_in`; a number or an array.
        cardinality: the number of paths.

    >>> round(float(second_moment(1.6, 0.115)), 4)
    1.202
    """
    return 1 + variance(alpha, inverse_fan_in, cardinality)


def variance(alpha: float, inverse_fan_in: Any, cardinality: Any = 1) -> Any:
    """Return Var(K) / E[K]^2 of an ensemble (Eq. 11); arguments as in `second_moment`.

    >>> round(float(variance(1.6, 0.115, cardinality=10)), 4)
    0.0202
    """
    finite_number("alpha", alpha, above=0)
    real_values("inverse_fan_in", inverse_fan_in, least=0)
    real_values("cardinality", cardinality, above=0)
    # Deep, narrow paths may exceed the range of floats: their variance is returned as infinite.
    with np.errstate(over="ignore"):
        return np.expm1(alpha * inverse_fan_in) / cardinality


class Law(Protocol):
    """The variance of one path as a function of its width, as a search needs it."""

    @property
    def name(self) -> str:
        """The law's name in reports."""

    def path_variance(self, width: np.ndarray) -> np.ndarray:
        """Return Var(K) / E[K]^2 of one path of each width."""

    def log_error(self, width: np.ndarray, reference: int) -> np.ndarray:
        """Return the standard error of log(path_variance(width) / path_variance(reference))."""


@dataclass(frozen=True)
class ExponentialLaw:
    """Assumption 1 with a known or fitted alpha.

    Attributes:
        module: the module, whose fan-ins enter S.
        alpha: the law's constant.
        alpha_error: its standard error; 0 if it is taken as known.
    """

    module: Module
    alpha: float
    alpha_error: float = 0.0

    def __post_init__(self) -> None:
        instance("module", self.module, Module, "a geometry.Module")
        finite_number("alpha", self.alpha, above=0)
        finite_number("alpha_error", self.alpha_error, 0)

    @property
    def name(self) -> str:
        """The constant and its standard error."""
        error = f" ± {self.alpha_error:.2g}" if self.alpha_error else ""
        return f"alpha = {self.alpha:.4g}{error}"

    def path_variance(self, width: np.ndarray) -> np.ndarray:
        """Return Eq. 11 with one path."""
        return variance(self.alpha, self.module.inverse_fan_in(width))

    def log_error(self, width: np.ndarray, reference: int) -> np.ndarray:
        """Return the standard error of the log-ratio of the variances at two widths.

        The error of alpha is perfectly correlated across widths: it enters times the difference of
        d log(variance) / d alpha.
        """
        slopes = [self._log_slope(np.asarray(n)) for n in (width, reference)]
        return self.alpha_error * abs(slopes[0] - slopes[1])

    def _log_slope(self, width: np.ndarray) -> np.ndarray:
        """Return the derivative of log(path_variance) with respect to alpha."""
        s = self.module.inverse_fan_in(width)
        return -s / np.expm1(-self.alpha * s)


class ClosedFormLaw:
    """The exact variance of modules that are stacks of ReLU layers: nothing is fitted.

    Args:
        module: a module that is described as a stack (`Module.stack`).
        correlation: of the input at the positions that the first layer is applied at, as
            `ce_keras.variance.closed_form.gram_of` takes it; 1 by default, the limit of smooth
            feature maps. Fully connected networks have one position, and so no correlation.

    Raises:
        ValueError: for a module without `stack`, or a correlation that no input can have.

    >>> from ce_keras.geometry import bottleneck
    >>> law = ClosedFormLaw(bottleneck(width=128))
    >>> law.coefficients.round(2).tolist()  # Var(K) / E[K]^2 = 6.44 / n + 12.56 / n^2
    [6.44, 12.56]
    """

    def __init__(self, module: Module, correlation: Any = None) -> None:
        instance("module", module, Module, "a geometry.Module")
        if module.stack is None:
            raise ValueError(
                f"alpha: no closed form is known for {module.name!r}; stacks of ReLU layers "
                "without biases have one"
            )
        self.module = module
        self._stack = module.stack
        baseline = module.stack(module.width)
        if baseline.positions == 1 and correlation is not None:
            raise ValueError(
                f"correlation: {module.name!r} has one position; there is nothing to correlate"
            )
        self.gram = gram_of(baseline.positions, 1.0 if correlation is None else correlation)
        self._activation = baseline.activation

    @property
    def name(self) -> str:
        """The law's name, with the mean correlation of the positions."""
        if len(self.gram) == 1:
            return "closed form"
        return f"closed form, correlation {mean_correlation(self.gram):.3g}"

    @property
    def coefficients(self) -> np.ndarray | None:
        """The c_k of Var(K) / E[K]^2 = sum_k c_k / n^k; `None` above eight hidden layers."""
        widths = np.array([float(n) for n in self._stack(self.module.width).widths])
        if len(widths) > MOST_COEFFICIENTS:
            return None
        ratios = widths / self.module.width
        return variance_coefficients(ratios, self.gram, self._activation)

    def path_variance(self, width: np.ndarray) -> np.ndarray:
        """Return the exact variance of a stack of these widths."""
        widths = np.stack(np.broadcast_arrays(*self._stack(width).widths), axis=-1)
        return relative_variance(widths, self.gram, self._activation)

    def log_error(self, width: np.ndarray, reference: int) -> np.ndarray:  # noqa: ARG002
        """Return zeros: the formula is exact."""
        return np.zeros(np.shape(width))


class MeasuredLaw:
    """A measured variance curve, for modules that do not follow the exponential law.

    A table is interpolated linearly in the logarithms of width and variance.

    Args:
        curve: a function from a width to the relative variance of one path, or to a pair of
            variance and standard error; or a mapping from widths to either.

    Raises:
        ValueError: for a variance that is not positive, or a negative error.

    >>> law = MeasuredLaw({1: 4.0, 4: 1.0, 16: (0.25, 0.05)})
    >>> law.path_variance(np.array([2, 16])).tolist()
    [2.0, 0.25]
    """

    name = "measured law"

    def __init__(self, curve: Callable[[int], Any] | Mapping[int, Any]) -> None:
        if not callable(curve) and not isinstance(curve, Mapping):
            raise ValueError(
                f"law: got {brief(curve)}; it must be a function of a width, a table, or a fit of "
                "ce_keras.variance.fit_alpha"
            )
        self._curve = curve
        self.range: tuple[float, float] = (1, np.inf)
        if isinstance(curve, Mapping):
            if not curve:
                raise ValueError("law: the table is empty")
            known = np.array(sorted(finite_number("law: width", n, above=0) for n in curve))
            self.range = (known[0], known[-1])
            values = np.array([_variance_and_error(n, curve[n]) for n in known])
            self._table = np.log(known), np.log(values[:, 0]), values[:, 1] / values[:, 0]

    def path_variance(self, width: np.ndarray) -> np.ndarray:
        """Return the measured variance at each width."""
        return np.exp(self._at(width)[0])

    def log_error(self, width: np.ndarray, reference: int) -> np.ndarray:
        """Return the standard error of a log-ratio: errors of two widths are independent."""
        errors = self._at(width)[1]
        return np.where(width == reference, 0.0, np.hypot(errors, self._at(reference)[1]))

    def _at(self, width: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithm of the variance at each width, and its standard error."""
        if isinstance(self._curve, Mapping):
            known, log_variance, error = self._table
            at = np.log(width)
            return np.interp(at, known, log_variance), np.interp(at, known, error)
        values = [
            _variance_and_error(n, called("law", self._curve, int(n))) for n in np.ravel(width)
        ]
        variance, error = np.array(values).T.reshape(2, *np.shape(width))
        return np.log(variance), error / variance


def _variance_and_error(width: Any, value: Any) -> tuple[float, float]:
    try:
        variance, error = value if np.ndim(value) else (value, 0.0)
        good = np.isfinite(variance) and variance > 0 and 0 <= error < np.inf
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"law: got {brief(value)} for width {brief(width)}; it must be a positive variance, or "
            "a pair of that and its standard error"
        )
    return float(variance), float(error)


class PolynomialLaw:
    """A polynomial in 1 / width without a constant term, fitted to measured variances.

    The exact variance of a stack of H hidden ReLU layers is such a polynomial, of degree H; that of
    other blocks is a series of this form. Unlike the exponential law it can be extrapolated beyond
    the measured widths. The degree is the lowest from two on whose chi-square is not too large
    (5 %), and at most four where the variances have errors; no coefficient is negative, so that the
    variance never is. Where the chi-square stays too large, errors are enlarged by its root.

    Args:
        width: the measured widths.
        variance: Var(K) / E[K]^2 at each.
        error: its standard errors; zeros where it is exact.

    Attributes:
        coefficients: c_1, c_2, ... of the variance sum_k c_k / n^k.
        covariance: covariance matrix of the coefficients.
        chi_square: chi-square of the residuals.
        degrees_of_freedom: of the residuals.

    Raises:
        ValueError: for fewer than two widths, or variances that are not positive.

    >>> n = np.array([1, 2, 4, 8, 16])
    >>> law = PolynomialLaw(n, 3 / n + 5 / n**2, np.full(5, 0.01))
    >>> law.coefficients.round(3).tolist()
    [3.0, 5.0]
    """

    def __init__(self, width: np.ndarray, variance: np.ndarray, error: np.ndarray) -> None:
        n, v, errors = _checked_measurements(width, variance, error)
        # Exact values get equal relative weights.
        sigma = np.where(errors > 0, errors, _EXACT * v)
        distinct = len(np.unique(n))
        if distinct < 2:
            raise ValueError(f"width: got {brief(width)}; there must be two different widths")
        # Higher degrees are not resolved by draws at a few widths.
        most = _MOST_TERMS if errors.any() else _MOST_EXACT_TERMS
        for order in range(2, min(most, distinct) + 1):
            powers = n[:, None] ** -np.arange(1.0, order + 1)
            self.coefficients, self.covariance = _fit(powers / sigma[:, None], v / sigma)
            self.chi_square = float((((v - powers @ self.coefficients) / sigma) ** 2).sum())
            self.degrees_of_freedom = len(n) - order
            if self.chi_square <= _chi_square_limit(self.degrees_of_freedom):
                return
        if self.degrees_of_freedom:
            self.covariance = self.covariance * self.chi_square / self.degrees_of_freedom

    @property
    def name(self) -> str:
        """The polynomial, such as `3/n + 5/n^2`."""
        return polynomial_text(self.coefficients)

    def path_variance(self, width: np.ndarray) -> np.ndarray:
        """Return the polynomial at each width."""
        return self._powers(width) @ self.coefficients

    def error(self, width: np.ndarray) -> np.ndarray:
        """Return the standard error of the variance at each width."""
        powers = self._powers(width)
        return np.sqrt(np.einsum("...i,ij,...j->...", powers, self.covariance, powers))

    def log_error(self, width: np.ndarray, reference: int) -> np.ndarray:
        """Return the standard error of a log-ratio: widths share the coefficients' errors."""
        slopes = [
            self._powers(n) / self.path_variance(n)[..., None] for n in (width, np.array(reference))
        ]
        difference = slopes[0] - slopes[1]
        return np.sqrt(np.einsum("...i,ij,...j->...", difference, self.covariance, difference))

    def _powers(self, width: Any) -> np.ndarray:
        n = np.asarray(width, dtype=float)
        return n[..., None] ** -np.arange(1.0, len(self.coefficients) + 1)


def _fit(design: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return non-negative least-squares coefficients and their covariance.

    A term whose coefficient would be negative is left out: its coefficient and errors are 0.
    """
    terms = list(range(design.shape[1]))
    while True:
        # By orthogonal columns: the powers are nearly dependent.
        chosen = design[:, terms]
        sizes = np.linalg.norm(chosen, axis=0)
        basis, triangle = np.linalg.qr(chosen / sizes)
        inverse = np.linalg.inv(triangle) / sizes[:, None]
        covariance = inverse @ inverse.T
        found = inverse @ (basis.T @ target)
        if (found >= 0).all() or len(terms) == 1:
            break
        # In standard errors: coefficients of different powers have different scales.
        del terms[int((found / np.sqrt(np.diag(covariance))).argmin())]
    coefficients = np.zeros(design.shape[1])
    coefficients[terms] = found
    whole = np.zeros((design.shape[1],) * 2)
    whole[np.ix_(terms, terms)] = covariance
    return coefficients, whole


def _checked_measurements(width: Any, variance: Any, error: Any) -> list[np.ndarray]:
    """Return widths, variances and standard errors as vectors of one length."""
    found = []
    for name, value in (("width", width), ("variance", variance), ("error", error)):
        array = real_array(name, value)
        bound = "of 0 or more" if name == "error" else "above 0"
        if (
            array.ndim != 1
            or len(array) < 2
            or len(array) != np.size(width)
            or not (array >= 0 if name == "error" else array > 0).all()
        ):
            raise ValueError(
                f"{name}: got {brief(value)}; it must be a list of two numbers or more {bound}, "
                "one for each width"
            )
        found.append(array)
    return found


# Terms of a polynomial that is fitted to draws, and to exact values.
_MOST_TERMS, _MOST_EXACT_TERMS = 4, 12

# The relative standard error that exact values are given.
_EXACT = 1e-9

# With smaller ones, variances of wide paths are 0.
_LEAST_ALPHA = 1e-100


def polynomial_text(coefficients: Sequence[float] | np.ndarray) -> str:
    """Return a polynomial in 1 / n as text.

    >>> polynomial_text([3.0, 5.0])
    '3/n + 5/n^2'
    """
    terms = [f"{c:.3g}/n^{k}" for k, c in enumerate(coefficients, start=1)]
    return " + ".join(terms).replace("/n^1 ", "/n ").removesuffix("^1")


def _chi_square_limit(degrees_of_freedom: int) -> float:
    """Return the 95 % quantile of chi-square (Wilson and Hilferty's approximation)."""
    if degrees_of_freedom < 1:
        return np.inf
    spread = 2 / (9 * degrees_of_freedom)
    return float(degrees_of_freedom * (1 - spread + 1.645 * np.sqrt(spread)) ** 3)


class FittedAlpha(Protocol):
    """A fitted constant with its standard error, as `AlphaFit` has them."""

    alpha: float
    alpha_error: float


class FittedLaw(Protocol):
    """A fit that has a polynomial law, as `AlphaFit` does."""

    @property
    def polynomial(self) -> PolynomialLaw:
        """The polynomial fitted to the same points."""


def law_of(module: Module, alpha: Any, curve: Any, correlation: Any = None) -> Law:
    """Return the law that the arguments `alpha`, `law` and `correlation` of `search` describe.

    Raises:
        ValueError: if both `alpha` and `curve` are given, or one of the arguments is invalid.
    """
    instance("module", module, Module, "a geometry.Module")
    exact = isinstance(alpha, str) and alpha == "closed_form"
    if correlation is not None and not exact:
        raise ValueError(
            f"correlation: got {brief(correlation)} with alpha={brief(alpha)}; only the closed "
            "form depends on it: alpha='closed_form'"
        )
    if curve is not None:
        if alpha is not None:
            raise ValueError(f"alpha, law: got alpha={brief(alpha)} and a law; give one of them")
        polynomial = getattr(curve, "polynomial", curve)
        if isinstance(polynomial, PolynomialLaw):
            return polynomial
        return MeasuredLaw(curve)
    if exact:
        return ClosedFormLaw(module, correlation)
    if alpha is None and module.alpha is None:
        raise ValueError(
            f"alpha: none given and none known for {module.name!r}; fit one with Algorithm 1 "
            "(the paper's bottleneck block has 1.60)"
        )
    alpha = module.alpha if alpha is None else alpha
    value = getattr(alpha, "alpha", alpha)
    try:
        value = finite_number("alpha", value, least=_LEAST_ALPHA)
        error = finite_number("alpha", getattr(alpha, "alpha_error", 0.0), least=0)
    except ValueError:
        raise ValueError(
            f"alpha: got {brief(alpha)}; it must be a positive number, 'closed_form', or a fit "
            "(the paper's bottleneck block has 1.60)"
        ) from None
    return ExponentialLaw(module, value, error)
