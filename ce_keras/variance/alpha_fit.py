"""The result of Algorithm 1: the constant of the variance law, and the points it is fitted to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ce_keras.checks import Parameterization, positive_int
from ce_keras.plotting import COLOR, axes_for
from ce_keras.variance.law import PolynomialLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["closed_form", "sampler", "ensemble", "tape"]


@dataclass(frozen=True, eq=False, repr=False)
class AlphaFit:
    """A fitted variance law, and the points it was fitted to.

    Attributes:
        module: name of the module.
        method: how its kernels were obtained, as in `fit_alpha`.
        draws: kernels drawn for each width; 0 for the closed form.
        alpha: the slope of log(E[K^2] / E[K]^2) against S, which `ce_keras.search` takes.
        alpha_error: its standard error.
        intercept: the line's value at S = 0; the law has 0.
        width: the widths of the points.
        inverse_fan_in: S of Eq. 9 at each width.
        log_ratio: log(E[K^2] / E[K]^2) at each width.
        log_ratio_error: its standard errors.
        parameterization: of the kernel: `"ntk"` or `"standard"`.
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
    parameterization: Parameterization = "ntk"

    @property
    def residuals(self) -> np.ndarray:
        """`log_ratio` minus the line."""
        return self.log_ratio - self.intercept - self.alpha * self.inverse_fan_in

    @property
    def variance(self) -> np.ndarray:
        """Var(K) / E[K]^2 at each width, as measured."""
        return np.expm1(self.log_ratio)

    @property
    def variance_error(self) -> np.ndarray:
        """The standard error of the variance at each width."""
        return np.exp(self.log_ratio) * self.log_ratio_error

    @property
    def misfit(self) -> np.ndarray:
        """The law's variance over the measured one, at each width."""
        return np.expm1(self.alpha * self.inverse_fan_in) / self.variance

    @property
    def holds(self) -> bool:
        """True if the law's variance is within a tenth of the measured one, at every width.

        Two standard errors are added to the tenth. If it is false, a search is more accurate with
        the measured curve: `search(..., law=fit.table())`.
        """
        error = 2 * self.variance_error / self.variance
        return bool((abs(np.log(self.misfit)) <= np.log(1.1) + error).all())

    @property
    def polynomial(self) -> PolynomialLaw:
        """A polynomial in 1 / width fitted to the same points, which `search(..., law=fit)` uses.

        Unlike the exponential law, it can be extrapolated beyond the widths that were drawn.

        Raises:
            ValueError: for a variance that is not positive: draw more.
        """
        return PolynomialLaw(self.width, self.variance, self.variance_error)

    def from_width(self, width: int) -> AlphaFit:
        """Return the fit of the points of this width and above only.

        Raises:
            ValueError: if fewer than two points are left.
        """
        positive_int("width", width)
        kept = self.width >= width
        if kept.sum() < 2:
            raise ValueError(
                f"width: got {width}; a line needs two widths or more, of {self.width.tolist()}"
            )
        names = ("width", "inverse_fan_in", "log_ratio", "log_ratio_error")
        arrays = {name: getattr(self, name)[kept] for name in names}
        return dataclasses.replace(self, **line(*list(arrays.values())[1:]), **arrays)

    def table(self) -> dict[int, tuple[float, float]]:
        """Return the measured variance and its standard error by width, for `search(law=...)`."""
        rows = zip(self.width, self.variance, self.variance_error, strict=True)
        return {int(n): (float(v), float(e)) for n, v, e in rows}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the points with two standard errors, and the line, and return the axes.

        Args:
            ax: where to draw; a new figure if not given.
        """
        ax = axes_for(ax)
        s, errors = self.inverse_fan_in, 2 * self.log_ratio_error
        ax.errorbar(s, self.log_ratio, errors, fmt="o", ms=4, color="black", capsize=3)
        ends = np.array([0, s.max()])
        label = f"alpha = {self.alpha:.3f} ± {self.alpha_error:.3f}"
        ax.plot(ends, self.intercept + self.alpha * ends, color=COLOR, label=label)
        ax.legend(loc="upper left", frameon=False)
        ax.set_xlabel("S, the sum of 1/fan-in")
        ax.set_ylabel("log(E[K²]/E[K]²)")
        ax.set_title(f"{self.module}, widths {self.width[0]} to {self.width[-1]}", fontsize=11)
        return ax

    def __repr__(self) -> str:
        how = "" if self.method == "closed_form" else f", {self.draws} draws for each width"
        law = "holds" if self.holds else "does not hold to a tenth of the variance"
        kind = "" if self.parameterization == "ntk" else ", standard parameterisation"
        return (
            f"alpha = {self.alpha:.3f} ± {self.alpha_error:.3f} for {self.module}{kind}\n"
            f"  by {self.method.replace('_', ' ')}{how}; intercept {self.intercept:.3f}\n"
            f"  over widths {self.width[0]} to {self.width[-1]} the law {law} "
            f"(law's over measured variance: {self.misfit.min():.2f} to {self.misfit.max():.2f})"
        )


def line(s: np.ndarray, points: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    """Return slope, its standard error and intercept of the least-squares line."""
    # The slope is linear in the points, so their errors propagate exactly.
    weights = (s - s.mean()) / ((s - s.mean()) ** 2).sum()
    alpha = float(weights @ points)
    return {
        "alpha": alpha,
        "alpha_error": float(np.sqrt(weights**2 @ errors**2)),
        "intercept": float(points.mean() - alpha * s.mean()),
    }
