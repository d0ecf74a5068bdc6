"""What was found in a model and what was not, and what became of it."""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import Any

from ce_keras.geometry import Design


@dataclass(frozen=True)
class Found:
    """A chain that is, or would be, an ensemble.

    Attributes:
        name: of the chain.
        kind: `"bottleneck"` or `"dense"`.
        layers: its linear layers.
        widths: of its hidden layers, before.
        path_widths: of one path.
        cardinality: the number of paths.
        alpha: the constant of the exponential law; `None` if the law is the closed form.
        baseline_variance: Var(K) / E[K]^2 before, of its family's reference.
        variance: the same after.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    path_widths: tuple[int, ...]
    cardinality: int
    alpha: float | None
    baseline_variance: float
    variance: float


@dataclass(frozen=True)
class Chosen:
    """The design of one family of chains.

    Attributes:
        family: what its chains are.
        chains: their names.
        width: the baseline's, of the narrowest of them.
        design: cardinality, and the width that a path of the narrowest has.
        law: the variance law, in words.
        alpha: its constant; `None` for the closed form.
        path_params: parameters of one path of all chains together.
    """

    family: str
    chains: tuple[str, ...]
    width: int
    design: Design
    law: str
    alpha: float | None
    path_params: int


@dataclass(frozen=True)
class Left:
    """A layer with a matrix that stays as it is.

    Attributes:
        name: of the layer.
        kind: its class.
        reason: why it is left.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
        params: trained parameters.
        flops: FLOPs of one example; `None` if sizes are not known.
        step_seconds: median time of a training step; `None` if it was not measured.
    """

    params: int
    flops: int | None
    step_seconds: float | None = None


@dataclass(frozen=True, repr=False)
class Report:
    """What `inspect` found, and what `collegialize` did.

    Attributes:
        model: name of the model.
        mode: `"primal"`, `"dual"`, or the design that was forced.
        found: the chains that become ensembles.
        left: the layers that stay, and why.
        before: costs of the model.
        after: costs with the ensembles: predicted by `inspect`, counted by `collegialize`.
        answers: the designs, one for each family of chains.
    """

    model: str
    mode: str
    found: tuple[Found, ...]
    left: tuple[Left, ...]
    before: Costs
    after: Costs
    answers: tuple[Chosen, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        content = dataclasses.asdict(dataclasses.replace(self, answers=()))
        del content["answers"]
        return content

    def __repr__(self) -> str:
        lines = [self._title(), *self._costs()]
        for table in (self._found(), self._left()):
            if len(table) > 1:
                lines += ["", *_aligned(table)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        tables = "".join(
            "<table>"
            + "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                for row in table
            )
            + "</table>"
            for table in (self._found(), self._left())
            if len(table) > 1
        )
        title = html.escape(" ".join([self._title(), *self._costs()]))
        return f"<p>{title}</p>{tables}"

    def _title(self) -> str:
        if not self.found:
            return f"{self.model}: nothing in it can be ensembled"
        return f"{self.model}, {self.mode}: {len(self.found)} ensembles"

    def _costs(self) -> list[str]:
        if not self.found:
            return [f"  trained parameters {self.before.params:,}"]
        lines = []
        before, after = self.before, self.after
        lines.append(
            f"  trained parameters {before.params:,} -> {after.params:,} "
            f"({before.params / after.params:.2f} times fewer)"
        )
        if before.flops is not None and after.flops is not None:
            lines.append(
                f"  FLOPs {before.flops:,} -> {after.flops:,} "
                f"({before.flops / max(after.flops, 1):.2f} times fewer)"
            )
        if before.step_seconds is not None and after.step_seconds is not None:
            lines.append(
                f"  training step {1e3 * before.step_seconds:.0f} ms -> "
                f"{1e3 * after.step_seconds:.0f} ms"
            )
        return lines

    def _found(self) -> list[list[str]]:
        head = ["ensemble", "layers", "widths before", "after", "law", "Var(K)/E[K]^2"]
        return [
            head,
            *(
                [
                    each.name,
                    str(len(each.layers)),
                    ", ".join(map(str, each.widths)),
                    f"{each.cardinality} x ({', '.join(map(str, each.path_widths))})",
                    "exact" if each.alpha is None else f"alpha = {each.alpha:.3g}",
                    f"{each.baseline_variance:.4g} -> {each.variance:.4g}",
                ]
                for each in self.found
            ),
        ]

    def _left(self) -> list[list[str]]:
        return [
            ["left as it is", "class", "why"],
            *([each.name, each.kind, each.reason] for each in self.left),
        ]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        ("  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
