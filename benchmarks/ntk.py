"""The tangent kernel against its peers: kernels of given models, memory, and draws a second.

python benchmarks/ntk.py [--peer peer/bin/python] [--rounds 9] [--out docs/benchmarks]

The peers are `tf.GradientTape.jacobian` and, where `--peer` names the Python of an environment that
has it (see benchmarks/ntk_peer.py), neural-tangents with the fastest of its implementations. This
package is measured on TensorFlow, and in other processes on JAX and PyTorch (`--backends`).
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from ntk_cases import CASES, Case, build, draw
from timing import interleaved, ratios

from ce_keras import files
from ce_keras.geometry import bottleneck
from ce_keras.ntk import chain_kernels, empirical_ntk, fit_alpha

#: The cases that the tape finishes in less than a minute.
BY_TAPE = {Case("dense", 1), Case("dense", 10), Case("block", 1), Case("resnext29", 1, 16)}


def by_tape(model: keras.Model, x: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a function that computes the kernel from eager jacobians, without this package."""

    def run() -> np.ndarray:
        with tf.GradientTape() as tape:
            outputs = model(x, training=False)
        jacobians = tape.jacobian(outputs, [v.value for v in model.trainable_variables])
        rows = [tf.reshape(j, [math.prod(outputs.shape), -1]) for j in jacobians]
        products = tf.add_n([tf.matmul(row, row, transpose_b=True) for row in rows])
        by_output = tf.reshape(products, [*outputs.shape, *outputs.shape])
        return tf.transpose(by_output, [0, 2, 1, 3]).numpy()

    return run


class Peer:
    """neural-tangents, or this package on another backend, in a process that answers questions."""

    def __init__(self, python: str, script: str = "ntk_peer.py", backend: str = "") -> None:
        # PyTorch's threads wait for each other by spinning, which with other processes about took
        # 240 ms for a kernel of 14.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        if backend:
            environment["KERAS_BACKEND"] = backend
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name(script)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, question: str) -> float:
        """Return the number that the process answers to a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(question, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer"):
                return float(line.split()[1])
        raise RuntimeError(f"the peer did not answer {question!r}")


def kernels(
    cases: list[Case], peer: Peer | None, others: dict[str, Peer], rounds: int
) -> list[str]:
    """Time every way to compute every case; return the rows of the table."""
    lines = []
    for case in cases:
        model = build(case)
        x = draw(case, model)
        ours = functools.partial(empirical_ntk, model, x, trace_axes=case.trace_axes)
        ours()
        contestants: dict[str, Callable[[], object]] = {"ce_keras": ours}
        if case in BY_TAPE:
            contestants["tape.jacobian, eager"] = by_tape(model, x)
        question = f"gram {case.name} {case.logits}"
        for name, other in others.items():
            contestants[name] = functools.partial(other.ask, question)
        if peer is not None and case.name != "resnext29":
            contestants["neural-tangents"] = functools.partial(peer.ask, question)
        timings = interleaved(contestants, rounds)
        for name, timing in timings.items():
            ratio = timing.median / timings["ce_keras"].median
            lines.append(f"| {case} | {name} | {timing} | {ratio:.2f} |")
    return lines


def memory(case: Case) -> float:
    """Return the peak memory of three kernels in MiB, tracing included, above that before."""
    model = build(case)
    x = draw(case, model)
    # The peer's process has had its compiler at work too, on the forward pass.
    tf.function(functools.partial(model, training=False), jit_compile=True)(x[:1])
    model(x[:1], training=False)
    before = peak_memory(reset=True)
    for _ in range(3):
        empirical_ntk(model, x, trace_axes=case.trace_axes)
    return peak_memory() - before


def peak_memory(reset: bool = False) -> float:
    """Return the peak memory of this process in MiB, since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memories(cases: list[Case], python: str | None) -> list[str]:
    """Measure the memory of every case in a process of its own; return the rows of the table."""
    lines = []
    for case in cases:
        command = [sys.executable, __file__, "--memory", case.name, str(case.logits)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines.append(f"| {case} | ce_keras | {float(output.split()[-1]):.0f} MiB |")
        if python is not None and case.name != "resnext29":
            # Each in a process of its own: what one has taken, the next would find there.
            question = f"memory {case.name} {case.logits}"
            taken = min(Peer(python).ask(f"{question} {which}") for which in range(3))
            lines.append(f"| {case} | neural-tangents | {taken:.0f} MiB |")
    return lines


def draws(peer: Peer | None, small: bool) -> list[str]:
    """Count draws a second of the kernel of five hidden layers; return the rows of the table."""
    lines = []
    for width in (10, 100, 500):
        count = 1000 if small else 1_000_000
        begun = time.perf_counter()
        chain_kernels([width] * 5, count, seed=0)
        ours = count / (time.perf_counter() - begun)
        lines.append(f"| width {width} | ce_keras, chain sampler | {ours:,.0f} | 1 |")
        if peer is not None:
            peer.ask(f"draws {width} 1")
            theirs = 10 / peer.ask(f"draws {width} 10")
            lines.append(
                f"| width {width} | neural-tangents, monte_carlo_kernel_fn | {theirs:,.1f} | "
                f"{ours / theirs:,.0f} times fewer |"
            )
    return lines


def algorithm_1(small: bool) -> list[str]:
    """Time the fit of alpha of the paper's block: twelve widths, 2,000 draws each."""
    ratios = (0.05, 0.1, 0.2) if small else None
    counts = dict.fromkeys(("sampler", "ensemble", "tape"), 5 if small else 2000)
    counts["tape"] = min(20, counts["tape"])  # A draw takes as long as any other.
    fits, seconds = {}, {method: [] for method in counts}
    for method in 3 * list(counts):
        begun = time.perf_counter()
        fits[method] = fit_alpha(
            bottleneck(width=256), ratios, counts[method], method=method, seed=0
        )
        seconds[method].append(time.perf_counter() - begun)
    rates = {
        method: len(fits[method].width) * count / statistics.median(seconds[method])
        for method, count in counts.items()
    }
    return [
        f"| {len(fit.width)} widths x {counts[method]} draws | {method} | "
        f"{statistics.median(seconds[method]):.2f} s | {rates[method]:,.1f} | "
        f"{rates[method] / rates['tape']:,.0f} | {fit.alpha:.3f} ± {fit.alpha_error:.3f} |"
        for method, fit in fits.items()
    ]


def main() -> None:
    """Measure, print and write `ntk.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python that has neural-tangents")
    parser.add_argument("--backends", nargs="*", help="beside TensorFlow; those installed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="one small case: only whether it runs")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "LOGITS"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    cases = [Case("dense", 1)] if options.small else CASES
    if options.memory:
        name, logits = options.memory
        wanted = (name, int(logits))
        print(memory(next(case for case in CASES if case[:2] == wanted)))
        return
    peer = Peer(options.peer) if options.peer else None
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}; TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}; {options.rounds} rounds"
    )
    if options.backends is None:
        installed = [name for name in ("jax", "torch") if importlib.util.find_spec(name)]
        options.backends = [] if options.small else installed
    others = {
        f"ce_keras on {backend}": Peer(sys.executable, "ntk_cases.py", backend)
        for backend in options.backends
    }
    timed = kernels(cases, peer, others, options.rounds)
    verdict = (
        f"neural-tangents takes {ratios(timed, 'neural-tangents')} times as long, and a plain loop "
        f"of tape.jacobian {ratios(timed, 'tape.jacobian, eager')} times."
    ) + "".join(f" {name}: {ratios(timed, name)} times." for name in others)
    text = "\n".join(
        [
            "# The tangent kernel",
            "",
            f"**{verdict}**",
            "",
            f"{machine}. Medians of interleaved runs (quartiles); ratio: time over ours.",
            "",
            "| kernel | by | median (quartiles) | ratio |",
            "|---|---|---:|---:|",
            *timed,
            "",
            "| peak memory of three kernels, the compiler being loaded | by | |",
            "|---|---|---:|",
            *memories(cases, options.peer),
            "",
            "| draws a second, five hidden layers | by | draws | |",
            "|---|---|---:|---:|",
            *draws(peer, options.small),
            "",
            "| Algorithm 1, bottleneck block | by | time | draws a second | times tape's | alpha |",
            "|---|---|---:|---:|---:|---:|",
            *algorithm_1(options.small),
            "",
        ]
    )
    with files.replacing(options.out / "ntk.md") as part:
        part.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
