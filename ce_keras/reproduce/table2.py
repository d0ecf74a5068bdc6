"""Table 2: the designs of ResNet-50 and ResNet-101, their parameters and rho."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ce_keras.reproduce import tables
from ce_keras.reproduce.protocol import EXACT, Check, NoSettings
from ce_keras.reproduce.store import Points
from ce_keras.training.recipe import read_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Table 2: designs of ResNet-50 and ResNet-101"

SCALES = EXACT


def measure(settings: NoSettings, seed: int, points: Points) -> dict[str, Any]:
    """Return every row of the table."""
    del settings, seed, points
    errors = read_recipe("imagenet").expected.error
    return {"rows": tables.rows("2", errors), "answers": tables.answers("2")}


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare designs, parameters and rho with the printed ones."""
    return tables.compare(data)


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    return (
        "At the paper's widths the search finds the paper's cardinalities, parameters and rho; "
        f"free to choose the width, {tables.choices_printed(data)}."
    )


def say(data: dict[str, Any]) -> str:
    """Return the search's own choices."""
    own = {(row["baseline"], row["mode"]): row["design"] for row in data["answers"]}
    return (
        "Given the choice of width, the search takes the paper's primal design, "
        f"{own['resnext50', 'primal']}, and for the dual {own['resnext50', 'dual']}, where the "
        "paper printed wider paths. The errors drawn are the paper's: nothing here has trained on "
        "ImageNet (`ce-keras train imagenet` would)."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the paper's errors against parameters."""
    axes = figure.subplots(1, 2)
    for ax, network in zip(axes, ("resnext50", "resnext101"), strict=True):
        tables.draw_errors(data, network, ax)
    axes[0].set_ylabel("the paper's top-1 error on ImageNet in %")
    axes[0].legend(frameon=False)
