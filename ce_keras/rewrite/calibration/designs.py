"""Designs of about one size for a trained model, among which calibration chooses."""

from __future__ import annotations

from ce_keras.geometry import Design
from ce_keras.rewrite.building import Decided
from ce_keras.rewrite.decisions import Family, decide, network_of
from ce_keras.rewrite.options import Options
from ce_keras.rewrite.report import Costs

#: Message for a comparison of designs that are as large as the model, which itself would win.
COMPARE_SMALLER = (
    "design: 'calibrated' compares networks smaller than the model, and mode='primal' keeps its "
    "size; give mode='dual', or a target"
)

#: Cardinalities that are compared beside the search's own; 1 is the narrower network.
CARDINALITIES = (1, 2, 4)


def check_smaller(before: Costs, after: Costs) -> None:
    """Raise `ValueError` if designs of a size are not below the model's, which would be nearest."""
    if after.params >= before.params:
        raise ValueError(
            "design: 'calibrated' compares networks smaller than the model, which has "
            f"{before.params:,} parameters; the optimum has {after.params:,}. Give a target below "
            "1, such as target=0.5"
        )


def designs_of_size(
    decided: Decided, before: Costs, params: int, options: Options
) -> list[Decided]:
    """Return designs of about so many trained parameters, one for each of a few cardinalities.

    All families keep the same fraction of their widths. Designs that are decided already are left
    out.

    Args:
        decided: families, and the designs that the search has given them.
        before: costs of the model.
        params: the size.
        options: of `collegialize`, for the variances of the designs.
    """
    families = [family for family, _ in decided]
    rest = before.params - sum(family.cost("params", family.width) for family in families)
    found = {tuple(decision.design for _, decision in decided)}
    choices: list[Decided] = []
    for cardinality in CARDINALITIES:
        designs = _of_size(families, cardinality, params - rest)
        if designs in found:
            continue
        found.add(designs)
        choice = []
        for (family, decision), design in zip(decided, designs, strict=True):
            alpha = "closed_form" if decision.alpha is None else decision.alpha
            own = options._replace(design=design, alpha=alpha)
            network = network_of(family, before.params, before.flops)
            choice.append((family, decide(family, network, {}, own)))
        choices.append(choice)
    return choices


def _of_size(families: list[Family], cardinality: int, params: float) -> tuple[Design, ...]:
    """Return the designs whose parameters in all come nearest to `params`."""
    widest = max(family.width for family in families)

    def designs(width: int) -> tuple[Design, ...]:
        return tuple(
            Design(cardinality, max(1, round(width * family.width / widest))) for family in families
        )

    def size(width: int) -> float:
        return sum(
            design.cardinality * family.cost("params", design.width)
            for family, design in zip(families, designs(width), strict=True)
        )

    low, high = 1, widest
    while high - low > 1:  # The size grows with the width.
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= params else (low, middle)
    return designs(min((low, high), key=lambda width: abs(size(width) - params)))
