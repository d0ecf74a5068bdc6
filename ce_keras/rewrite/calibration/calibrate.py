"""Build ensembles of a trained model, calibrate them, and take the one nearest to the model."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from ce_keras.layers.flops import parameters
from ce_keras.progress import progress
from ce_keras.rewrite.building import Decided, finish, rebuilt
from ce_keras.rewrite.calibration.data import Batches
from ce_keras.rewrite.calibration.graph import Activations
from ce_keras.rewrite.calibration.layers import Pair, normalisation, refit, refit_normalisation
from ce_keras.rewrite.calibration.reconstruction import exits, passes, reconstruct
from ce_keras.rewrite.calibration.solve import NOT_FINITE, LeastSquares
from ce_keras.rewrite.calibration.units import Links, chosen_units
from ce_keras.rewrite.chains import Chain
from ce_keras.rewrite.decisions import Family
from ce_keras.rewrite.report import BlockError, Calibration, Compared, Decision
from ce_keras.rewrite.splitting import Units, carry_over, fill
from ce_keras.variance.samplers import generator

#: Rows of activations that units are chosen by.
_ROWS = 20_000


def nearest(
    model: keras.Model, choices: Sequence[Decided], images: Batches, seed: int | None
) -> tuple[keras.Model, Decided, Calibration]:
    """Build and calibrate designs; return the one nearest to the model on images held out.

    Designs are compared as they are fitted layer by layer; the one that is taken is then calibrated
    to the end.

    Args:
        model: the trained model.
        choices: families of its chains, each with a design.
        images: to calibrate on, and held out.
        seed: as for `calibrate`.

    Returns:
        The new model, its families and designs, and how near it is. Of several choices, that has
        the list.
    """
    compared = []
    if len(choices) > 1:
        for decided in choices:
            ensemble, pairs = rebuilt(model, decided, compiled=False)
            found = calibrate(model, ensemble, pairs, decided, images, seed, together=False)
            designs = ", ".join(dict.fromkeys(str(decision.design) for _, decision in decided))
            row = Compared(designs, parameters(ensemble), found.error, found.agreement)
            compared.append((row, decided))
        compared.sort(key=lambda each: each[0].error)
        choices = [compared[0][1]]
    (best,) = choices
    ensemble, pairs = rebuilt(model, best, compiled=False)
    found = calibrate(model, ensemble, pairs, best, images, seed)
    finish(model, ensemble)
    return ensemble, best, dataclasses.replace(found, compared=tuple(row for row, _ in compared))


def calibrate(
    model: keras.Model,
    ensemble: keras.Model,
    pairs: Sequence[tuple[Any, Any]],
    decided: Decided,
    images: Batches,
    seed: int | None,
    together: bool = True,
) -> Calibration:
    """Give an ensemble weights that bring its function near to the model's.

    Args:
        model: the trained model.
        ensemble: the new one, whose weights are assigned.
        pairs: the model's layers, each with what took its place.
        decided: the families whose chains became paths, and their designs.
        images: to calibrate on, and held out.
        seed: of the positions in the images that are read, and of the first clusters of units.
        together: whether the layers of a chain are trained together after each has been fitted.

    Returns:
        How near the new model has come, on images held out.

    Raises:
        ValueError: for a layer of a chain in the NTK parameterisation.
    """
    new = carry_over(pairs, decided, "calibrated")
    old = Activations(model, images.inputs)
    pair = Pair(old, Activations(ensemble, images.inputs), images.fit, generator(seed))
    order = {id(call.operation): at for at, call in reversed(list(enumerate(old.graph.calls)))}
    chains = [(chain, *both) for both in decided for chain in both[0].chains]
    for chain, *_ in chains:
        if any(id(each.layer) not in order for each in chain.linear):
            raise ValueError(
                f"init: 'calibrated' cannot read inside the layer that holds {chain.name!r}, such "
                "as a TimeDistributed, or a model whose class has a call of its own; leave it out "
                "with skip, or use init='split'"
            )
    chains.sort(key=lambda each: order[id(each[0].linear[0].layer)])
    blocks = []
    steps = sum(len(chain.linear) + together * passes(pair) for chain, *_ in chains)
    with progress(total=steps, desc="calibrating") as bar:
        for chain, family, decision in chains:
            entry = chain.linear[0].layer
            pair.old.advance(entry)
            pair.new.advance(new[id(entry)])
            units = _units(pair, chain, family, decision)
            fill(chain, units, new)
            held_out = pair._replace(batches=images.held_out)
            error_now = functools.partial(_block_error, held_out, *exits(pair, chain, new))
            before = error_now()
            _refit_all(pair, chain, units, new, order, bar)
            if together:
                reconstruct(pair, chain, new, error_now, bar.update)
            blocks.append(BlockError(chain.name, before, error_now()))
    error, agreement = _nearness(pair, images.held_out)
    counts = (images.count(images.fit), images.count(images.held_out))
    return Calibration(*counts, error, agreement, tuple(blocks))


def _units(pair: Pair, chain: Chain, family: Family, decision: Decision) -> Units:
    """Return the units that the paths of a chain begin with."""
    calls = [pair.old.graph.calls_of(each.layer)[0] for each in chain.linear[1:]]
    sums = [LeastSquares(centred=True) for _ in calls]
    rows = -(-_ROWS // pair.old.images(pair.batches))
    for values in pair.old.values([call.inputs[0] for call in calls], pair.batches):
        for each, own, value in zip(chain.linear[1:], sums, values, strict=True):
            places = value.reshape(len(value), -1, each.base)
            where = pair.rng.permutation(places.shape[1])[:rows]
            x = places[:, where].reshape(-1, each.base).astype(np.float64)
            own.add(x, x[:, :0])
    covariances = {number: own.covariance for number, own in enumerate(sums, 1)}

    def path_width(width: int) -> int:
        return family.path_width(decision.design.width, width)

    links = Links(pair.old.graph, chain)
    return chosen_units(
        chain, links, covariances, decision.design.cardinality, path_width, pair.rng
    )


def _refit_all(
    pair: Pair, chain: Chain, units: Units, new: dict[int, Any], order: dict[int, int], bar: Any
) -> None:
    """Refit the layers of a chain, first to last."""
    linear = {id(each.layer): _targets(chain, units, at) for at, each in enumerate(chain.linear)}
    calls = [pair.old.graph.calls_of(each.layer)[0] for each in chain.linear]
    behind = [normalisation(pair.old.graph, call) for call in calls]
    fitted = {id(call.operation) for call in behind if call is not None}
    norms = {
        id(each.layer): np.concatenate(channels)
        for each, channels in zip(chain.intermediate, units.intermediate, strict=True)
        if isinstance(each.layer, keras.layers.BatchNormalization) and id(each.layer) not in fitted
    }
    layers: list[Any] = [each.layer for each in chain.linear]
    layers += [each.layer for each in chain.intermediate]
    for layer in sorted(layers, key=lambda each: order[id(each)]):
        if id(layer) in linear:
            refit(pair, layer, new[id(layer)], linear[id(layer)])
            bar.update()
        elif id(layer) in norms:
            refit_normalisation(pair, layer, new[id(layer)], norms[id(layer)])


def _targets(chain: Chain, units: Units, index: int) -> list[np.ndarray]:
    """Return the outputs of the model's layer that each regression is fitted to."""
    if index == len(chain.linear) - 1:
        return [np.arange(chain.linear[index].outputs)]
    # All paths of the first layer read the same.
    return units.outputs[index] if index else [np.concatenate(units.outputs[0])]


# How near -----------------------------------------------------------------------------------------


def _block_error(pair: Pair, wanted: list[Any], found: list[Any]) -> float:
    """Return the relative error of a chain's outputs, in all its calls."""
    values = pair.values(wanted, found)
    return _relative_error(
        itertools.chain.from_iterable(zip(*both, strict=True) for both in values)
    )


def _nearness(pair: Pair, held_out: Iterable[int]) -> tuple[float, float | None]:
    """Return the relative error of the outputs, and how often their largest numbers agree."""
    held = pair._replace(batches=list(held_out))
    outputs = list(held.values(pair.old.graph.outputs, pair.new.graph.outputs))
    errors, agreements = [], []
    for number, tensor in enumerate(pair.old.graph.outputs):
        values = [(old[number], new[number]) for old, new in outputs]
        if not all(np.isfinite(old).all() for old, _ in values):
            raise ValueError(f"data: {NOT_FINITE}")
        errors.append(_relative_error(values))
        if len(tensor.shape) > 1 and (tensor.shape[-1] or 0) > 1:
            same = [(a.argmax(-1) == b.argmax(-1)).ravel() for a, b in values]
            agreements.append(float(np.concatenate(same).mean()))
    agreement = float(np.mean(agreements)) if agreements else None
    return float(np.mean(errors)), agreement


def _relative_error(values: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the distance of tensors from wanted ones, over these ones' spread about the mean."""
    apart = squares = 0.0
    count, total = 0, np.zeros(())
    for wanted, found in values:
        rows = wanted.reshape(-1, wanted.shape[-1]).astype(np.float64)
        apart += float(((rows - found.reshape(rows.shape)) ** 2).sum())
        squares += float((rows**2).sum())
        count, total = count + len(rows), total + rows.sum(0)
    spread = squares - float((total**2).sum()) / count
    return math.sqrt(apart / spread) if spread > 0 else math.inf if apart else 0.0
