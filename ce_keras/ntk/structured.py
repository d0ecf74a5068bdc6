"""The kernel layer by layer: one forward and one backward pass, and each layer's contribution.

1. *Record* (`ce_keras.ntk.recording`): the forward pass hands over the input of every layer, the
   backward pass the cotangents of its output.
2. *Contract* (`ce_keras.ntk.layer_rules`, `ce_keras.ntk.contractions`): from both follows what the
   layer's variables add to the kernel, without a jacobian of the model.
3. *Verify*, once and before the rest: on a few examples, every variable's contribution is compared
   with autodiff's. Rules see only the layers that have one. A variable that is used anywhere else,
   by a custom layer or a second time past its layer, would miss a part of its contribution; and a
   layer whose first axis is not the examples would have its gradients in the wrong rows. Such
   variables are left to autodiff.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from ce_keras.layers.keras_internals import all_layers
from ce_keras.ntk.autodiff import AutodiffEngine, stateless
from ce_keras.ntk.axes import OutputAxes, examples_of, number_of_examples, only_output
from ce_keras.ntk.backends import backend, once
from ce_keras.ntk.contractions import Contribution, at_least_single, merged, sum_in_turn
from ce_keras.ntk.recording import BatchAxisError, Recorder

# Outputs that are differentiated one after the other, where nothing is compiled.
_MOST_PASSES = 16

# Compiled functions that an engine keeps, each for one number of examples.
_MOST_COMPILED = 8

# Examples that rules are verified on. One alone may leave a layer dead, and has no other row that
# its gradient could be taken for.
_VERIFIED_ON = 3


class StructuredEngine:
    """Kernels of one model, for one choice of variables and of output axes.

    Args:
        model: a built Keras model.
        variables: the variables to differentiate by.
        axes: the entries of the kernel that are asked for.
        examples: inputs, on a few of which the rules are verified.

    Attributes:
        by_autodiff: the variables that are left to autodiff.
        numbers_per_example: about how many numbers are held for one example.
    """

    def __init__(
        self, model: keras.Model, variables: Sequence[Any], axes: OutputAxes, examples: Any
    ) -> None:
        self.axes = axes
        self._recorder = Recorder(model, variables)
        self.by_autodiff, numbers = verify(model, variables, self._recorder, examples)
        self.numbers_per_example = max(1, axes.total * numbers)
        self._autodiff = AutodiffEngine(model, variables, axes)
        # One for each number of examples, of which the last ones used are kept.
        self._compiled_for = functools.lru_cache(_MOST_COMPILED)(
            lambda *_: backend.compiled(self._kernel, model)
        )
        # Compiling takes several times as long as a kernel: it pays from the second of a size on.
        few = axes.total <= _MOST_PASSES and not self.by_autodiff
        self._is_eager_first = backend.EAGER_FIRST and few
        self._sizes: set[tuple[int | None, ...]] = set()

    def kernel(self, x1: Any, x2: Any | None) -> Any:
        """Return the kernel, axes in public order; `x2` is `None` for `x1` again.

        All is done by autodiff where the model treats this number of examples otherwise than those
        of the verification.
        """
        sizes = tuple(None if x is None else number_of_examples(x) for x in (x1, x2))
        is_eager = self._is_eager_first and sizes not in self._sizes
        self._sizes.add(sizes)
        compute = self._kernel if is_eager else self._compiled_for(*sizes)
        try:
            return compute(x1, x2)
        except BatchAxisError:
            return self._autodiff.kernel(x1, x2)

    def _kernel(self, x1: Any, x2: Any | None) -> Any:
        first = self._contributions(x1)
        second = None if x2 is None else self._contributions(x2)
        pairs = ((a, a) for a in first) if second is None else zip(first, second, strict=True)
        # Layers may be of other precisions.
        grams = (a.gram(b, self.axes.same_examples) for a, b in pairs)
        kernel = sum_in_turn(ops.cast(gram, self.axes.dtype.name) for gram in grams)
        if kernel is None:  # The model does not use these variables.
            sizes = [number_of_examples(x) for x in (x1, x1 if x2 is None else x2)]
            return ops.zeros(self.axes.kernel_shape(*sizes), self.axes.dtype.name)
        return self.axes.restore(kernel / self.axes.counts[0])

    def _contributions(self, x: Any) -> Iterator[Contribution]:
        arrange, counts = self.axes.arrange, self.axes.counts
        for layer in self._recorder.contributions(x, arrange, counts, self.by_autodiff):
            yield from merged([contribution for _, contribution in layer])


def verify(
    model: keras.Model, variables: Sequence[Any], recorder: Recorder, examples: Any
) -> tuple[list[Any], int]:
    """Return the variables whose contribution is not what autodiff says, and the memory of all.

    Every entry of each variable's own kernel is compared, for one random combination of the
    outputs of each example, with all variables a little off their values. Variables that no rule
    covers are among them although their gradients be zero here: with other weights they are not.

    Args:
        model: a built Keras model.
        variables: those whose contributions are wanted.
        recorder: of their contributions; it learns which layers have the examples first.
        examples: inputs, at least one.

    Returns:
        The variables to leave to autodiff; and how many numbers the contributions of one output
        hold for one example.
    """
    examples = distinct_examples(examples, _VERIFIED_ON)
    # Two batch sizes: an axis that is as long as one of them is not as long as the other.
    recorder.find_batch_first_layers(examples_of(examples, slice(_VERIFIED_ON - 1)))
    numbers = 0

    def both(examples: Any) -> tuple[list[Any], dict[int, Any]]:
        nonlocal numbers
        squares = _squared_gradients(model, variables, examples)
        found = recorder.batch_first_contributions(examples, _combined)
        working = max((each.working for each in found.values()), default=0)
        numbers = (sum(each.held for each in found.values()) + working) // _VERIFIED_ON
        return squares, {key: each.gram(each)[0, 0, :, 0] for key, each in found.items()}

    with stateless(model, *_perturbed(model)), backend.full_precision():
        squares, grams = once(both, model)(examples)
    expected = np.stack([_kernel_of(ops.convert_to_numpy(each)) for each in squares])
    found = np.zeros_like(expected)
    for index, variable in enumerate(variables):
        if id(variable) in grams:
            found[index] = ops.convert_to_numpy(grams[id(variable)])
    half = any(layer.compute_dtype.endswith("16") for layer in all_layers(model))
    tolerance = 3e-2 if half else 1e-3
    largest = abs(expected).max(axis=(1, 2))
    gap = abs(found - expected).max(axis=(1, 2))
    wrong = gap > tolerance * largest + 1e-6 * tolerance * largest.sum()
    left_out = recorder.left_out()
    by_autodiff = [
        v for v, is_wrong in zip(variables, wrong, strict=True) if is_wrong or id(v) in left_out
    ]
    return by_autodiff, numbers


def _combined(outputs: Any) -> Any:
    """Return one random combination of the outputs of every example, `(examples, 1)`."""
    weights = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
    products = ops.cast(outputs, "float32") * ops.convert_to_tensor(weights)
    return ops.sum(ops.reshape(products, [outputs.shape[0], -1]), axis=1, keepdims=True)


def _perturbed(model: keras.Model) -> tuple[list[Any], list[Any]]:
    """Return the trainable variables, and values for them, a little off their own.

    A gate that starts at zero hides what is behind it.
    """
    values = []
    for index, variable in enumerate(model.trainable_variables):
        value = ops.convert_to_numpy(variable.value)
        double = value.astype(np.float64)
        off = 0.1 * np.sqrt(np.mean(double**2)) + 0.1
        noise = np.random.default_rng((0, index)).standard_normal(value.shape, np.float32)
        values.append((double + off * noise).astype(value.dtype))
    return model.trainable_variables, values


# Pairs of the examples that rules are verified on.
_PAIRS = [*itertools.combinations_with_replacement(range(_VERIFIED_ON), 2)]


def _squared_gradients(model: keras.Model, variables: Sequence[Any], examples: Any) -> list[Any]:
    """Return the squared gradient of each pair's outputs, summed, by each variable, `(pairs,)`.

    Lengths are taken as gradients are found, so that no more than one is held: with all of them,
    the benchmark's dense network needs 1.6 times the memory.
    """
    values = [ops.convert_to_tensor(variable.value) for variable in variables]

    def sums(handles: Sequence[Any]) -> Any:
        tied = [_with_handle(*each) for each in zip(handles, values, strict=True)]
        with stateless(model, variables, tied):
            results = _combined(only_output(model(examples, training=False)))[:, 0]
        return ops.stack([results[i] if i == j else results[i] + results[j] for i, j in _PAIRS])

    handles = [ops.zeros([], at_least_single(value).dtype) for value in values]
    return backend.jacobian(sums, handles)


def _with_handle(handle: Any, value: Any) -> Any:
    """Return the value as a function of a number, whose gradient is its own, squared and summed."""

    @ops.custom_gradient
    def unchanged(_: Any) -> Any:
        def squared(*arguments: Any, upstream: Any = None) -> Any:
            (upstream,) = arguments if upstream is None else (upstream,)
            # TensorFlow's gradient of a table comes as rows.
            return ops.sum(at_least_single(ops.reshape(upstream, value.shape)) ** 2)

        return ops.stop_gradient(value), squared

    return unchanged(handle)


def _kernel_of(squares: np.ndarray) -> np.ndarray:
    """Return a kernel from the squared lengths of gradients, and of sums of two: `_PAIRS`."""
    kernel = np.zeros((_VERIFIED_ON, _VERIFIED_ON))
    for (i, j), square in zip(_PAIRS, squares, strict=True):
        kernel[i, j] = square
    for i, j in itertools.combinations(range(_VERIFIED_ON), 2):  # |a + b|^2 = |a|^2 + |b|^2 + 2 a b
        kernel[i, j] = kernel[j, i] = (kernel[i, j] - kernel[i, i] - kernel[j, j]) / 2
    return kernel


def distinct_examples(x: Any, count: int) -> Any:
    """Return `count` examples that differ from each other where that can be had.

    They are taken from `x`; where its examples are too few or equal, the values of one are rolled
    along its last axis, so that they stay the values of an example: word numbers, pixels, words.
    """
    chosen: list[Any] = []
    rows = number_of_examples(x)
    # From all over: examples are often sorted.
    few, more = (np.linspace(0, rows - 1, number).astype(int).tolist() for number in (count, 9))
    own = (arrays_of(x, slice(start, start + 1)) for start in dict.fromkeys(few + more))
    for candidate in itertools.chain(own, _rolled(arrays_of(x, slice(1)))):
        if not any(_equal(candidate, other) for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    chosen += [chosen[0]] * (count - len(chosen))
    return joined(*chosen)


def arrays_of(x: Any, rows: slice) -> Any:
    """Return some examples of a structure of inputs as NumPy arrays."""
    return tree.map_structure(ops.convert_to_numpy, examples_of(x, rows))


def joined(*examples: Any) -> Any:
    """Return structures of arrays, one after another, as tensors."""
    return tree.map_structure(
        lambda *arrays: ops.convert_to_tensor(np.concatenate(arrays)), *examples
    )


def _rolled(example: Any) -> Iterator[Any]:
    """Give an example rolled along its last axis by one place, by two, and so on."""
    lengths = [array.shape[-1] for array in tree.flatten(example) if array.ndim > 1]
    for shift in range(1, min(max(lengths, default=1), 10)):
        yield tree.map_structure(
            lambda array, by=shift: np.roll(array, by, -1) if array.ndim > 1 else array, example
        )


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(tree.flatten(one), tree.flatten(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
