"""The default designs of the zoo's networks: published in the paper, or derived.

A *published* design is a row of the paper's Tables 1 and 2, with its error. A *derived* design is
the result of `ce_keras.search`. They can differ: Table 2b publishes 4x16d as ResNet-50's dual, but
the search, under the conventions that yield all the other designs, derives 6x10d.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ce_keras.algorithm2 import solve
from ce_keras.checks import one_of, positive_int
from ce_keras.geometry import RESNEXTS, Design, resnext

#: A problem that `ce_keras.search` solves, or one of the two designs the paper compares with.
DesignMode = Literal["primal", "dual", "baseline", "resnext"]
DESIGN_MODES: tuple[DesignMode, ...] = ("primal", "dual", "baseline", "resnext")


class Published(NamedTuple):
    """A row of the paper's Tables 1 and 2.

    Attributes:
        network: the family.
        mode: `"baseline"`, `"resnext"` (found by grid search in the ResNeXt paper), `"primal"` or
            `"dual"`.
        design: cardinality and width.
        millions: parameters in millions, as printed.
        table: the table that prints it.
        baseline: the baseline, as `ce_keras.search` takes it.
        rho: its parameter efficiency, as printed; `None` if none is.
    """

    network: str
    mode: DesignMode
    design: Design
    millions: float
    table: str
    baseline: str
    rho: float | None = None


def _rows(
    baseline: str, mode: DesignMode, table: str, printed: dict[str, float | tuple[float, float]]
) -> list[Published]:
    """Return rows of one baseline, given the millions, or millions and rho, of each design."""
    network, rows = baseline.partition("-")[0], []
    for design, figures in printed.items():
        millions, rho = figures if isinstance(figures, tuple) else (figures, None)
        rows.append(Published(network, mode, Design.parse(design), millions, table, baseline, rho))
    return rows


#: The first design of a network and mode is that mode's default.
PUBLISHED: list[Published] = [
    *_rows("resnext29", "baseline", "1", {"1x128d": 13.8}),
    *_rows("resnext29-1x226d", "baseline", "1", {"1x226d": 36.3}),
    *_rows("resnext29", "resnext", "1", {"3x64d": 13.3}),
    *_rows("resnext29-1x226d", "resnext", "1", {"8x64d": 34.4, "2x64d": (9.13, 4.0)}),
    *_rows("resnext29", "primal", "1a", {"37x10d": 13.7, "28x12d": 12.9}),
    *_rows("resnext29-1x226d", "primal", "1a", {"101x10d": 36.3}),
    *_rows("resnext29", "dual", "1b", {"10x10d": (4.22, 3.3), "8x12d": (4.19, 3.3)}),
    *_rows("resnext29-1x226d", "dual", "1b", {"14x10d": (5.63, 6.5), "6x25d": (7.26, 5.0)}),
    *_rows("resnext29-1x226d", "dual", "1b", {"3x58d": (11.6, 3.1), "2x98d": (17.4, 2.1)}),
    *_rows("resnext50", "baseline", "2", {"1x64d": 25.6}),
    *_rows("resnext50", "resnext", "2a", {"32x4d": 25.0}),
    *_rows("resnext50", "primal", "2a", {"12x10d": 25.8, "15x8d": 25.1}),
    *_rows("resnext50", "dual", "2b", {"4x16d": (17.1, 1.5), "3x23d": (19.4, 1.3)}),
    *_rows("resnext101", "baseline", "2", {"1x64d": 44.5}),
    *_rows("resnext101", "resnext", "2a", {"32x4d": 44.2}),
    *_rows("resnext101", "primal", "2a", {"12x10d": 45.5, "15x8d": 44.2}),
    *_rows("resnext101", "dual", "2b", {"5x12d": (25.8, 1.7), "3x23d": (32.9, 1.4)}),
]


def published(network: str, mode: DesignMode) -> list[Published]:
    """Return the paper's rows for a network and mode, the default first; maybe none."""
    one_of("network", network, tuple(RESNEXTS))
    one_of("mode", mode, DESIGN_MODES)
    return [row for row in PUBLISHED if (row.network, row.mode) == (network, mode)]


def choose_design(
    network: str,
    mode: DesignMode | None = None,
    cardinality: int | None = None,
    width: int | None = None,
) -> Design:
    """Return the design that the arguments of a zoo function select.

    Without `mode`, `cardinality` and `width` give any design, and leaving out both means
    `"primal"`. With `mode`, they select one of its published designs.

    Raises:
        ValueError: for arguments that are incomplete or contradict each other.

    >>> print(choose_design("resnext50", "dual"), choose_design("resnext29", "resnext", 8))
    4x16d 8x64d
    """
    one_of("network", network, tuple(RESNEXTS))
    wanted = {"cardinality": cardinality, "width": width}
    for argument, value in wanted.items():
        if value is not None:
            wanted[argument] = positive_int(argument, value)
    if mode is None and cardinality is not None and width is not None:
        return Design(cardinality, width)
    if mode is None and (cardinality is not None or width is not None):
        given, missing = sorted(wanted, key=lambda name: wanted[name] is None)
        raise ValueError(f"{missing}: needed too, since {given}={wanted[given]} is given")
    mode = "primal" if mode is None else mode
    one_of("mode", mode, DESIGN_MODES)
    known = [row.design for row in published(network, mode)] or [_derived(network, mode)]
    for design in known:
        if all(value in (None, getattr(design, name)) for name, value in wanted.items()):
            return design
    raise ValueError(
        f"mode: {mode!r} contradicts cardinality={cardinality}, width={width}: the {mode} designs "
        f"of {network} are {', '.join(map(str, known))}; leave mode out to build any other"
    )


def _derived(network: str, mode: DesignMode) -> Design:
    if mode == "baseline":
        return Design(1, RESNEXTS[network].width)
    if mode == "resnext":
        raise ValueError(f"mode: got 'resnext', but nobody has published one for {network}")
    return solve(resnext(network), mode).design
