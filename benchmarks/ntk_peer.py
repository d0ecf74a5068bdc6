"""neural-tangents, in an environment of its own: answers benchmarks/ntk.py, one line for a line.

It needs versions of JAX and NumPy that TensorFlow does not run with: `make peers` installs them.

Asked `gram NAME OUTPUTS`, it computes a kernel of 64 inputs by the fastest of its implementations
and answers the seconds; asked `memory NAME OUTPUTS WHICH`, the MiB that one of them takes at its
peak; asked `draws WIDTH COUNT`, the seconds for that many networks.
"""

import functools
import sys
import time
from pathlib import Path

import jax
import neural_tangents as nt
import numpy as np
from neural_tangents import stax


def dense(outputs):
    """Return five hidden layers, and the shape of their inputs."""
    layers = [layer for _ in range(5) for layer in (stax.Dense(500), stax.Relu())]
    return stax.serial(*layers, stax.Dense(outputs)), (64, 100)


def block(outputs):
    """Return the bottleneck block with a classifier, and the shape of its inputs."""
    branch = stax.serial(
        stax.Conv(64, (1, 1)),
        stax.Relu(),
        stax.Conv(64, (3, 3), padding="SAME"),
        stax.Relu(),
        stax.Conv(256, (1, 1)),
    )
    residual = stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), branch), stax.FanInSum())
    return stax.serial(residual, stax.GlobalAvgPool(), stax.Dense(outputs)), (64, 8, 8, 256)


@functools.cache
def network(name, outputs):
    """Return the function, its weights and inputs."""
    (init, apply, _), shape = {"dense": dense, "block": block}[name](outputs)
    key = jax.random.PRNGKey(0)
    x = jax.random.normal(key, shape)
    _, params = init(key, shape)
    apply(params, x[:1]).block_until_ready()
    return apply, params, x


def kernels(name, outputs):
    """Yield the kernel by each of the implementations, compiled."""
    apply, params, x = network(name, outputs)
    axes = (-1,) if outputs == 1 else ()
    for implementation in (
        nt.NtkImplementation.NTK_VECTOR_PRODUCTS,
        nt.NtkImplementation.STRUCTURED_DERIVATIVES,
        nt.NtkImplementation.JACOBIAN_CONTRACTION,
    ):
        kernel = jax.jit(
            nt.empirical_ntk_fn(apply, trace_axes=axes, vmap_axes=0, implementation=implementation)
        )
        yield functools.partial(lambda kernel: kernel(x, None, params).block_until_ready(), kernel)


@functools.cache
def fastest(name, outputs):
    """Return the kernel by the implementation that is fastest once compiled."""
    timings = []
    for run in kernels(name, outputs):
        run()
        timings.append((timed(run), len(timings), run))
    return min(timings)[-1]


def memory(name, outputs, which):
    """Return the peak memory of three kernels in MiB, compiling included, above that before."""
    run = list(kernels(name, outputs))[which]
    before = peak_memory(reset=True)
    for _ in range(3):
        run()
    return peak_memory() - before


def peak_memory(reset=False):
    """Return the peak memory of this process in MiB, since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def draws(width, count):
    """Return a function that draws kernels of `count` networks of five hidden layers."""
    layers = [layer for _ in range(5) for layer in (stax.Dense(width), stax.Relu())]
    init, apply, _ = stax.serial(*layers, stax.Dense(1))
    x = np.ones((1, 748), np.float32)
    kernel = nt.monte_carlo_kernel_fn(init, apply, jax.random.PRNGKey(0), count)
    return lambda: np.asarray(kernel(x, None, "ntk"))


def timed(run):
    """Return the seconds that a call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main():
    """Answer until there are no more questions."""
    for line in sys.stdin:
        what, *arguments = line.split()
        if what == "gram":
            answer = timed(fastest(arguments[0], int(arguments[1])))
        elif what == "draws":
            answer = timed(draws(*map(int, arguments)))
        else:
            answer = memory(arguments[0], *map(int, arguments[1:]))
        print(f"answer {answer}", flush=True)


if __name__ == "__main__":
    main()
