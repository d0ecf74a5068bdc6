"""The report on a model: candidates, decisions, skipped layers, and measured costs."""

from __future__ import annotations

import dataclasses
import html
import logging
from dataclasses import dataclass
from typing import Any

import keras

from ce_keras.cost import Measured
from ce_keras.geometry import Design
from ce_keras.layers.flops import flops, parameters

logger = logging.getLogger("ce_keras")


@dataclass(frozen=True)
class Candidate:
    """A chain of layers that is, or would be, an ensemble.

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
        baseline: its family with the rest of the model, of a report by `inspect`; `None` in one by
            `collegialize`.
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
    baseline: Any = dataclasses.field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Decision:
    """The design of one family of candidates: those of one kind and shape.

    Attributes:
        family: what its chains are.
        chains: their names.
        width: the baseline's, of the narrowest of them.
        design: cardinality, and the width that a path of the narrowest has.
        law: the variance law, in words.
        alpha: its constant; `None` for the closed form.
        baseline_variance: Var(K) / E[K]^2 before, of the narrowest.
        variance: the same after.
        path_params: parameters of one path of all chains together.
        measured: of a budget of latency or memory, the values before and after.
    """

    family: str
    chains: tuple[str, ...]
    width: int
    design: Design
    law: str
    alpha: float | None
    baseline_variance: float
    variance: float
    path_params: int
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A layer with a matrix that stays as it is.

    Attributes:
        name: of the layer.
        kind: its class.
        reason: why it stays.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Costs:
    """The costs of a model.

    Attributes:
        params: trained parameters.
        flops: FLOPs of one example; `None` if sizes are not known.
        step_seconds: median time of a training step; `None` if it was not measured.
    """

    params: int
    flops: int | None
    step_seconds: float | None = None


@dataclass(frozen=True)
class BlockError:
    """How far a chain's output is from the model's, relative to that output's spread.

    The output is that of the last layer, or of a batch normalisation behind it; a shortcut is left
    out. Both are measured on images held out, in the new network, whose earlier chains are
    calibrated. Training compares outputs before a softmax: the error behind it may grow.

    Attributes:
        name: of the chain.
        before: with the weights of the units that its paths take.
        after: calibrated.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Calibration:
    """How near to the model a calibration has brought the new one.

    Attributes:
        images: that the weights are fitted to.
        held_out: images that `error`, `agreement` and the blocks' errors are measured on.
        error: distance of the outputs from the model's, relative to their spread.
        agreement: fraction of the images whose largest output is the model's; `None` where no
            output has more than one number.
        blocks: one for each chain, first to last.
        compared: the designs that `design="calibrated"` chose from, the nearest first, as they are
            fitted layer by layer; only the first was trained further.
    """

    images: int
    held_out: int
    error: float
    agreement: float | None
    blocks: tuple[BlockError, ...]
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True)
class Compared:
    """A design that was calibrated beside others.

    Attributes:
        design: cardinality and width, of each family of chains.
        params: trained parameters of the network.
        error: as in `Calibration`.
        agreement: as in `Calibration`.
    """

    design: str
    params: int
    error: float
    agreement: float | None


@dataclass(frozen=True, repr=False)
class Report:
    """The report of `inspect` and `collegialize` on a model.

    Attributes:
        model: name of the model.
        mode: `"primal"`, `"dual"`, or the design that was forced.
        candidates: the chains that become ensembles.
        skipped: the layers that stay, and why.
        before: costs of the model.
        after: costs with the ensembles: predicted by `inspect`, counted by `collegialize`.
        decisions: the designs, one for each family of candidates.
        calibration: how near the new model is; `None` unless it was calibrated.
    """

    model: str
    mode: str
    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]
    before: Costs
    after: Costs
    decisions: tuple[Decision, ...] = ()
    calibration: Calibration | None = None

    @property
    def found(self) -> tuple[Candidate, ...]:
        """The candidates, by their name before version 0.2."""
        return self.candidates

    @property
    def left(self) -> tuple[Skipped, ...]:
        """The skipped layers, by their name before version 0.2."""
        return self.skipped

    @property
    def answers(self) -> tuple[Decision, ...]:
        """The decisions, by their name before version 0.2."""
        return self.decisions

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, for JSON; the decisions are left out."""
        bare = tuple(dataclasses.replace(each, baseline=None) for each in self.candidates)
        content = dataclasses.asdict(dataclasses.replace(self, candidates=bare, decisions=()))
        del content["decisions"]
        for candidate in content["candidates"]:
            del candidate["baseline"]
        return content

    def __repr__(self) -> str:
        lines = self._summary()
        for rows in self._tables():
            columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines.append("")
            for row in rows:
                cells = (f"{cell:<{width}}" for cell, width in zip(row, columns, strict=True))
                lines.append(f"  {'  '.join(cells)}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        tables = [
            f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"
            for head, *rows in self._tables()
        ]
        return f"<p>{html.escape(' '.join(self._summary()))}</p>{''.join(tables)}"

    def _summary(self) -> list[str]:
        before, after = self.before, self.after
        if not self.candidates:
            return [
                f"{self.model}: nothing in it can be ensembled",
                f"  trained parameters {before.params:,}",
            ]
        lines = [
            f"{self.model}, {self.mode}: {len(self.candidates)} ensembles",
            _change("trained parameters", before.params, after.params),
        ]
        if before.flops is not None and after.flops is not None:
            lines.append(_change("FLOPs", before.flops, after.flops))
        for decision in self.decisions:
            for line in decision.measured:
                values = f"{line.baseline:.3g} -> {line.value:.3g} {line.unit}"
                lines.append(f"  {line.name}, predicted {values}")
        if before.step_seconds is not None and after.step_seconds is not None:
            times = (f"{1e3 * each.step_seconds:.0f} ms" for each in (before, after))  # type: ignore[operator]
            lines.append(f"  training step {' -> '.join(times)}")
        if (found := self.calibration) is not None:
            lines.append(
                f"  calibrated on {found.images:,} images; on {found.held_out:,} others "
                f"{_agreement(found)}"
            )
        return lines

    def _tables(self) -> list[list[list[str]]]:
        """Return the tables that have rows, each a header and rows."""
        candidates = [
            [
                each.name,
                str(len(each.layers)),
                ", ".join(map(str, each.widths)),
                f"{each.cardinality} x ({', '.join(map(str, each.path_widths))})",
                "exact" if each.alpha is None else f"alpha = {each.alpha:.3g}",
                f"{each.baseline_variance:.4g} -> {each.variance:.4g}",
            ]
            for each in self.candidates
        ]
        skipped = [[each.name, each.kind, each.reason] for each in self.skipped]
        heads = (
            ["ensemble", "layers", "widths before", "after", "law", "Var(K)/E[K]^2"],
            ["skipped", "class", "why"],
            ["relative error of", "before", "calibrated"],
            ["compared", "parameters", "nearness"],
        )
        found = self.calibration
        blocks = (
            [[b.name, f"{b.before:.3f}", f"{b.after:.3f}"] for b in found.blocks] if found else []
        )
        compared = [
            [each.design, f"{each.params:,}", _agreement(each)]
            for each in (found.compared if found else ())
        ]
        tables = zip(heads, (candidates, skipped, blocks, compared), strict=True)
        return [[head, *rows] for head, rows in tables if rows]


def _agreement(found: Calibration | Compared) -> str:
    error = f"relative error {found.error:.3f}"
    if found.agreement is None:
        return error
    return f"top-1 agreement {100 * found.agreement:.1f} %, {error}"


def _change(what: str, before: int, after: int) -> str:
    return f"  {what} {before:,} -> {after:,} ({before / max(after, 1):.2f} times fewer)"


# Costs -------------------------------------------------------------------------------------------


def costs_of(model: keras.Model) -> Costs:
    """Return a model's parameters, and its FLOPs if they are known."""
    try:
        work = flops(model)
    except ValueError as error:
        logger.info("FLOPs of %s are not known: %s", model.name, error)
        work = None
    return Costs(parameters(model), work)
