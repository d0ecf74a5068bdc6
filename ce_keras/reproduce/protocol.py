"""Interface of a reproduction: its settings, the rows of its table, and the functions it has."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ce_keras.checks import one_of
from ce_keras.reproduce.store import Points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scale = Literal["small", "full"]

#: Names of all reproductions, in the order of the paper.
NAMES = (
    "assumption1",
    "fig2",
    "lemma1",
    "theorem1",
    "fig3",
    "fig4",
    "alpha",
    "exact_law",
    "stage_widths",
    "fit_prediction",
    "network_variance",
    "attention",
    "fig6",
    "cifar10",
    "table1",
    "table2",
)

#: Reproductions that are computed without Keras.
NUMPY_ONLY = frozenset({"fig2", "lemma1", "theorem1", "fig3", "exact_law", "fig6", "table2"})


#: Correlation of neighbouring pixels at the inputs of an untrained ResNeXt-29's blocks on CIFAR-10:
#: 0.89 to 0.92 in its stages (`stage_widths`).
CORRELATION = 0.92


class NoSettings(NamedTuple):
    """Settings of an exact computation: there are none."""


EXACT: dict[Scale, NoSettings] = {"small": NoSettings(), "full": NoSettings()}


class Check(NamedTuple):
    """One row of a page's table: a figure or statement of the paper, and the reproduction's.

    Attributes:
        quantity: name of the row.
        paper: the paper's figure or statement; `None` if it has none.
        ours: the figure computed or measured here.
        agrees: `True` if they are equal within the stated error, `False` if not; `None` if ours is
            too uncertain to tell, or if the paper has none.
    """

    quantity: str
    paper: str | None
    ours: str
    agrees: bool | None

    @classmethod
    def same(cls, quantity: str, paper: Any, ours: Any) -> Check:
        """Return the row of a quantity that must be equal to the paper's."""
        return cls(quantity, str(paper), str(ours), paper == ours)

    @classmethod
    def rounded(cls, quantity: str, paper: str, ours: float, digits: int = 2) -> Check:
        """Return the row of a number that must round to the one printed, like `"3.3"`."""
        decimals = len(paper.partition(".")[2])
        agrees = bool(abs(ours - float(paper)) <= 0.5 * 10**-decimals + 1e-9)
        return cls(quantity, paper, f"{ours:.{decimals + digits}f}", agrees)

    @classmethod
    def within(cls, quantity: str, paper: float, ours: float, error: float) -> Check:
        """Return the row of a measurement that may be three standard errors away."""
        agrees = bool(abs(ours - paper) <= 3 * error)  # Not NumPy's.
        return cls(quantity, f"{paper:g}", f"{ours:.3f} ± {error:.3f}", agrees)


class Experiment(Protocol):
    """Interface of a module of this package.

    A module may also have `summarize(data)`, statistics that several of its functions need: they
    are computed once, and `compare`, `verdict`, `say` and `draw` find them in `data["summary"]`;
    and `details(data)`, more Markdown for its page.
    """

    TITLE: str
    SCALES: dict[Scale, Any]

    def measure(self, settings: Any, seed: int, points: Points) -> dict[str, Any]:
        """Return the figures as plain numbers."""

    def compare(self, data: dict[str, Any]) -> list[Check]:
        """Return the rows of the table."""

    def verdict(self, data: dict[str, Any]) -> str:
        """Return the outcome in one sentence."""

    def say(self, data: dict[str, Any]) -> str:
        """Return a paragraph about what was done and found."""

    def draw(self, data: dict[str, Any], figure: Figure) -> None:
        """Draw the picture."""


def experiment(name: str) -> Experiment:
    """Import the module of a reproduction.

    Raises:
        ValueError: if there is no reproduction of this name.
    """
    one_of("name", name, NAMES)
    return importlib.import_module(f"ce_keras.reproduce.{name}")
