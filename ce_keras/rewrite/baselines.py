"""Families of a Keras model's chains as baselines of a search, with their costs."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ce_keras.algorithm2 import checked_fraction
from ce_keras.checks import brief
from ce_keras.cost import AffineCost, Cost, Measured, cost_of
from ce_keras.geometry import Design, Network, Width, scaled_widths
from ce_keras.latency import LatencyCost, Timing, known_table
from ce_keras.layers.functional import calls_of, is_functional
from ce_keras.problem import Mode
from ce_keras.rewrite.decisions import Family, alpha_of, network_of
from ce_keras.rewrite.report import Costs

# Refused by every search: for a family of whose cost less than nothing would be left.
_NOTHING = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class ModelBaseline:
    """One family of a model's chains, as a baseline.

    Attributes:
        model: the model.
        family: the family.
        network: both, as the search sees them.
        costs: of the model.
    """

    model: keras.Model
    family: Family
    network: Network
    costs: Costs

    def alpha(self, alpha: Any, seed: int | None = None) -> Any:
        """Return the search's `alpha`: by default the exact law where it is known, else a fit."""
        return alpha_of(self.family, alpha, seed)

    def budget(self, budget: Any, timing: Timing) -> Any:
        """Return a budget with latency and memory as costs, for `ce_keras.algorithm2.solve`.

        Raises:
            ValueError: for a cost that is not known of this model.
        """
        if isinstance(budget, tuple):
            return [self.budget(each, timing) for each in budget]
        if callable(budget):
            return budget
        if budget == "flops" and self.costs.flops is None:
            raise ValueError(
                "budget: 'flops' needs a model whose FLOPs are known: give its input a size"
            )
        if budget == "latency":
            return self._latency(timing)
        return self._memory(timing.batch) if budget == "memory" else budget

    def _latency(self, timing: Timing) -> Cost:
        from ce_keras.rewrite import timing as measured

        key = {"network": _digest(self.model), "family": self.family.name}
        measure = functools.partial(measured.measure_table, self.model, self.family, timing)
        return LatencyCost(timing, known_table(key, timing, measure), self.family.width)

    def _memory(self, batch: int) -> Cost:
        whole = activations(self.model)
        sizes = [chain.activations for chain in self.family.chains]
        if whole is None or None in sizes:
            raise ValueError(
                "budget: 'memory' needs a model whose tensors have known sizes: give one to its "
                "Input, and to that of every model inside it"
            )
        return MemoryCost(self.family, whole, batch, _bytes_of(self.model))


class MemoryCost(AffineCost):
    """The bytes of the activations that a training step keeps: all of them, until its end.

    Args:
        family: of the chains that become paths.
        whole: elements of all activations of the model, for one example.
        batch: examples in a step.
        size: bytes of an element.
    """

    def __init__(self, family: Family, whole: int, batch: int, size: int) -> None:
        chains = [chain.activations or () for chain in family.chains]

        def path(m: Any, n: Width) -> Any:
            of_one = sum(
                elements * scaled_widths(n, [base], family.width)[0]
                for each in chains
                for elements, base in each
            )
            return m * of_one * batch * size

        rest = whole * batch * size - path(1, family.width)
        name = f"activations, batch {batch}"
        super().__init__(name, lambda m, n: rest + path(m, n), path, family.width)

    def measured(self, design: Design) -> tuple[Measured, ...]:
        """Return the activations of a design beside the baseline's."""
        (value,) = self.of(*map(np.atleast_1d, design))
        return (Measured(self.name, "MiB", self.baseline / 2**20, float(value) / 2**20),)


def activations(model: keras.Model) -> int | None:
    """Return the elements of a model's inputs and of the outputs of all its calls, for one example.

    A training step keeps all of them for its backward pass. `None` if a size is not known.
    """
    sizes = [(1, *tensor.shape[1:]) for tensor in model.inputs]
    for call in calls_of(model):
        sizes += [(call.times, *tensor.shape[1:]) for tensor in call.outputs]
    return None if any(None in size for size in sizes) else sum(map(math.prod, sizes))


def _operations(model: keras.Model) -> list[Any]:
    """Return the operations of a functional or sequential model."""
    return keras.Model(model.inputs, model.outputs).operations


def _bytes_of(model: keras.Model) -> int:
    dtype = keras.dtype_policies.get(model.dtype_policy).compute_dtype or "float32"
    return 2 if "16" in dtype else 8 if "64" in dtype else 4


def _digest(model: keras.Model) -> str:
    """Return a short form of everything that a model's times depend on; not of names."""
    return hashlib.sha256(repr(_described(model)).encode()).hexdigest()[:20]


def _described(model: keras.Model) -> list[Any]:
    rows: list[Any] = []
    for operation in _operations(model):
        shapes = [(tensor.shape, tensor.dtype) for tensor in keras.tree.flatten(operation.output)]
        kind = type(operation).__name__
        if is_functional(operation):
            rows.append((kind, shapes, _described(operation)))
            continue
        config: dict[str, Any] = getattr(operation, "get_config", dict)()
        config.pop("name", None)
        rows.append((kind, shapes, sorted(map(repr, config.items()))))
    return rows


# Any baseline ------------------------------------------------------------------------------------


def model_baselines(
    model: keras.Model, families: Sequence[Family], costs: Costs
) -> list[ModelBaseline]:
    """Return each family of a model's chains as a baseline, whose network has a name of its own."""
    names = Counter(family.name for family in families)
    found = []
    for family in families:
        network = network_of(family, costs.params, costs.flops)
        if names[family.name] > 1:
            own_name = f"{family.name}: {', '.join(chain.name for chain in family.chains)}"
            network = dataclasses.replace(network, name=own_name)
        found.append(ModelBaseline(model, family, network, costs))
    return found


def asked_of(
    found: Sequence[ModelBaseline],
    mode: Mode,
    budget: Any,
    target: float | None,
    target_params: int | None,
    timing: Timing,
) -> list[dict[str, Any]]:
    """Return for each family the arguments of `solve` that say what a design may cost.

    A target is of the whole model. Each family saves in proportion to what its paths cost.
    """
    size = {"target": target, "target_params": target_params}
    asked = [{"budget": each.budget(budget, timing), **size} for each in found]
    if len(found) < 2 or size == dict.fromkeys(size):
        return asked
    fraction = checked_fraction(found[0].network, mode, budget, target, target_params) or 1.0
    paths = [
        _fraction_of_paths(each, own["budget"]) for each, own in zip(found, asked, strict=True)
    ]
    saved = (1 - fraction) / (sum(paths) or 1.0)
    return [
        {**own, "target": max(1 - saved * part, _NOTHING), "target_params": None}
        for own, part in zip(asked, paths, strict=True)
    ]


def _fraction_of_paths(baseline: ModelBaseline, budget: Any) -> float:
    """Return the cost of a family's paths over the model's."""
    cost = cost_of(budget, baseline.network)
    without = cost.of(np.zeros(1), np.array([baseline.family.width]))[0]
    return 1 - float(without) / cost.baseline


def selected(found: list[ModelBaseline], pattern: str | None) -> list[ModelBaseline]:
    """Return the baselines whose family or a chain of which has a name of the pattern.

    Raises:
        ValueError: if none has.
    """
    if pattern is None:
        return found
    if not isinstance(pattern, str):
        raise ValueError(f"family: got {brief(pattern)}; it must be a pattern such as 'dense*'")
    chosen = [
        each
        for each in found
        if any(
            fnmatch.fnmatch(name, pattern)
            for name in (each.family.name, *(chain.name for chain in each.family.chains))
        )
    ]
    if not chosen:
        names = ", ".join(repr(each.family.name) for each in found)
        raise ValueError(f"family: {brief(pattern)} fits none; the model has {names}")
    return chosen


def loaded(baseline: str | Path | keras.Model) -> keras.Model:
    """Return a model, from its `.keras` file if that is what is given."""
    from ce_keras.saving import load_model

    return load_model(baseline) if isinstance(baseline, str | Path) else baseline
