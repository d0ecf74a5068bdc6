"""Table 2: the designs of ResNet-50 and ResNet-101, their parameters and rho. Exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ce_keras.reproduce import tables
from ce_keras.reproduce.result import EXACT, Check, NoSettings, Points
from ce_keras.training.recipe import read_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Table 2: designs of ResNet-50 and ResNet-101"

SCALES = EXACT


def measure(settings: NoSettings, seed: int, points: Points) -> dict[str, Any]:
    """Every row of the table."""
    del settings, seed, points
    errors = read_recipe("imagenet").expected.error
    return {"rows": tables.rows("2", errors), "answers": tables.answers("2")}


def compare(data: dict[str, Any]) -> list[Check]:
    """Designs, parameters and rho as printed, and ours."""
    return tables.compare(data)


def say(data: dict[str, Any]) -> str:
    """What the search does differently."""
    own = {(row["baseline"], row["mode"]): row["design"] for row in data["answers"]}
    return (
        "Given the paper's widths, the search finds the paper's cardinalities. Given the choice, "
        f"it takes the paper's primal design, {own['resnext50', 'primal']}, and for the dual "
        f"{own['resnext50', 'dual']}, where the paper printed wider paths. The errors drawn are "
        "the paper's: nothing here has trained on ImageNet (`ce-keras train imagenet` would)."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """The paper's errors against parameters."""
    axes = figure.subplots(1, 2)
    for ax, network in zip(axes, ("resnext50", "resnext101"), strict=True):
        tables.draw_errors(data, network, ax)
    axes[0].set_ylabel("the paper's top-1 error on ImageNet in %")
    axes[0].legend(frameon=False)
