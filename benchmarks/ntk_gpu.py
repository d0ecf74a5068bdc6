"""Kernels of given models on a GPU, by JAX or PyTorch, against their own jacobians. No TensorFlow.

Each of the benchmark's networks, at 64 to 1,024 inputs, by this package and by the vectorised
jacobian of every example, `jax.vmap(jax.jacrev)` or `torch.func.vmap(torch.func.jacrev)`, whose
products are summed variable by variable. Every result is a line of JSON in `--out`, written as it
ends: median milliseconds, the seconds of the first call, and the peak of the card's memory in MiB.
JAX cannot reset its peak: it is the highest of all measurements so far, ours first. A measurement
that runs out of memory is a line that says so. None begins after `--seconds`, three minutes by
default for each backend.

    KERAS_BACKEND=jax python benchmarks/ntk_gpu.py --out DIR
    KERAS_BACKEND=torch python benchmarks/ntk_gpu.py --out DIR

`--tiny` tries it out on small networks; without a GPU it runs too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import keras
import numpy as np
from keras import ops
from ntk_cases import Case, build, draw

from ce_keras.ntk import empirical_ntk

BACKEND = keras.backend.backend()
NAMES = [("dense", 1), ("dense", 10), ("block", 1), ("block", 10), ("resnext29", 1)]


def jacobians(model: keras.Model, case: Case) -> Callable[[Any], Any]:
    """Return a function from inputs to the kernel by vectorised jacobians, as the field does it."""
    variables = model.trainable_variables

    def outputs(values: list[Any], example: Any) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return model(example[None], training=False)[0]

    equation = "nok,mok->nm" if case.trace_axes else "nok,mpk->nmop"

    def kernel(rows: list[Any]) -> Any:
        flat = [ops.reshape(row, (*row.shape[:2], -1)) for row in rows]
        return sum(ops.einsum(equation, row, row) for row in flat)

    if BACKEND == "jax":
        import jax

        one = jax.vmap(jax.jacrev(outputs), (None, 0))
        compiled = jax.jit(lambda values, x: kernel(one(values, x)))
        return lambda x: compiled([variable.value for variable in variables], x)
    import torch

    one = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))

    # Only a layout, which `torch.func.vmap` cannot change: Keras' convolutions ask for it.
    layout = "keras.src.backend.torch.nn._maybe_convert_to_channels_last"

    def by_torch(x: Any) -> Any:
        with torch.no_grad(), unittest.mock.patch(layout, lambda tensor: tensor):
            return kernel(one([variable.value.detach() for variable in variables], x))

    return by_torch


def peak() -> float | None:
    """Return the peak of the card's memory in MiB, and begin anew where that can be done."""
    if BACKEND == "jax":
        import jax

        statistics_ = jax.devices()[0].memory_stats() or {}
        return round(statistics_["peak_bytes_in_use"] / 2**20, 1) if statistics_ else None
    import torch

    if not torch.cuda.is_available():
        return None
    found = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    torch.cuda.reset_peak_memory_stats()
    return found


def device() -> str:
    """Return the name of the card, or of the processor."""
    if BACKEND == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def contestant(by: str, case: Case) -> Callable[[], np.ndarray]:
    """Return a function that computes the case's kernel, of the same weights for both."""
    keras.utils.set_random_seed(0)
    model = build(case)
    x = ops.convert_to_tensor(draw(case, model))
    if by == "ce_keras":
        return lambda: empirical_ntk(model, x, trace_axes=case.trace_axes)
    peer = jacobians(model, case)
    return lambda: ops.convert_to_numpy(peer(x))


def measured(
    run: Callable[[], np.ndarray], rounds: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Return times and memory of a computation, and its result; `None` where it does not fit."""
    seconds = []
    peak()
    try:
        for _ in range(rounds + 2):  # The first compiles; the second may be warming up.
            begun = time.perf_counter()
            result = run()
            seconds.append(time.perf_counter() - begun)
    except (RuntimeError, ValueError) as error:  # `ValueError`: the engine's, around another.
        text = str(error)
        if not any(word in text for word in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise
        return {"does not fit": text[:100]}, None
    row = {
        "ms": round(1e3 * statistics.median(seconds[2:]), 3),
        "all ms": [round(1e3 * each, 3) for each in seconds[2:]],
        "first s": round(seconds[0], 3),
        "peak MiB": peak(),
    }
    return row, result


def main() -> None:
    """Measure ours at every size, then the peer's, and compare the kernels."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ntk_gpu"))
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=175, help="no new measurement after")
    parser.add_argument("--tiny", action="store_true", help="small networks: only whether it runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    full: set[tuple[Any, ...]] = set()
    expected: dict[Case, np.ndarray] = {}
    for by, size, (name, logits) in itertools.product(("ce_keras", "jacrev"), options.sizes, NAMES):
        case = Case(name, logits, size, options.tiny)
        row: dict[str, Any] = {"by": by, "backend": BACKEND, "device": device(), **case._asdict()}
        if time.perf_counter() - begun > options.seconds:
            break
        if (by, name, logits) in full:
            continue  # A larger one would not fit either.
        figures, kernel = measured(contestant(by, case), options.rounds)
        if by == "ce_keras":
            expected[case] = kernel
        elif kernel is not None and expected.get(case) is not None:
            gap = abs(kernel - expected[case]).max() / abs(kernel).max()
            figures["relative gap"] = float(gap)
        if kernel is None:
            full.add((by, name, logits))
        with (options.out / f"ntk_{BACKEND}.jsonl").open("a") as file:
            print(json.dumps({**row, **figures}), file=file, flush=True)
        print(json.dumps({**row, **figures}), flush=True)


if __name__ == "__main__":
    main()
