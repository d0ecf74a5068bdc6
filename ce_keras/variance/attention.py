"""Kernels of attention over random weights: of one head, drawn exactly, and of whole blocks.

With tokens x of Gram matrix G, the kernel of one output of a head at position p is

    K = W aGa + ((a.u)^2 / n + O aGa) + Q gGg + Gpp ((g.t)^2 / n + R gGg),

by the weights of values, output, keys and queries. Here t and u are independent Gaussian vectors of
covariance G; Q / Gpp and W are chi-squares of n degrees of freedom over n, O and R of n - 1;
a = softmax(sqrt(Q) t), and g = sqrt(W) a (u - a.u). No matrix of weights is needed.

>>> x = np.random.default_rng(0).standard_normal((8, 64))
>>> head_kernels(x, 16, 1000, np.random.default_rng(0)).shape
(1000,)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Draws of a head, and weights of blocks, that are computed at a time.
_AT_ONCE, _WEIGHTS = 2000, 2**24


def head_kernels(x: np.ndarray, n: int | None, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return draws of one head's kernel at the middle position, without drawing its matrices.

    The kernel is that of one output in the NTK parameterisation. Given the query q and the output
    weights w, the scores and the values along w are Gaussian vectors whose covariance is the
    tokens' Gram matrix; everything else in the kernel is chi-square.

    Args:
        x: the tokens, `(length, channels)`.
        n: width of the head; `None` for the limit of infinite width.
        draws: their number.
        rng: source of randomness.
    """
    # A triangle whose Gram matrix is the tokens': no more columns than tokens.
    root = np.asarray(np.linalg.qr(x.T / np.sqrt(x.shape[1]), "r")).T
    own = float((root[len(x) // 2] ** 2).sum())
    inverse, kernels = 0.0 if n is None else 1 / n, []
    for size in _chunks(draws, _AT_ONCE):

        def square(lost: int = 0, size: int = size) -> np.ndarray:
            """Return draws of chi-square of n - lost degrees of freedom, over n."""
            return np.ones(size) if n is None else 2 / n * rng.standard_gamma((n - lost) / 2, size)

        t, u = (rng.standard_normal((size, root.shape[1])) @ root.T for _ in range(2))
        query, weight = own * square(), square()
        logits = np.sqrt(query)[:, None] * t
        a = np.exp(logits - logits.max(1, keepdims=True))
        a /= a.sum(1, keepdims=True)
        mean = (a * u).sum(1)
        g = np.sqrt(weight)[:, None] * a * (u - mean[:, None])
        aga, ggg = (((y @ root) ** 2).sum(1) for y in (a, g))
        values, output = aga * weight, inverse * mean**2 + aga * square(1)
        keys, queries = ggg * query, own * (inverse * (g * t).sum(1) ** 2 + ggg * square(1))
        kernels.append(values + output + keys + queries)
    return np.concatenate(kernels)[:draws]


def block_kernels(
    x: np.ndarray, heads: int, n: int, norm: str, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return draws of a block's kernel at the middle position: the gradient's square, by autodiff.

    The draws are the paths of one ensemble: the first axis of every matrix is the draw.

    Args:
        x: the tokens, `(length, channels)`.
        heads: their number.
        n: width of each.
        norm: layer normalisation `"before"` or `"after"` attention and perceptron, or `"none"`; or
            `"layer"`: attention alone, without residual connection or perceptron.
        draws: their number.
        rng: source of randomness.
    """
    import tensorflow as tf

    tokens, middle, d = tf.constant(x, tf.float32), len(x) // 2, x.shape[1]
    shapes = [(heads, d, n)] * 3 + [(heads, n, d)] + [(d, 4 * d), (4 * d, d)] * (norm != "layer")

    def normalised(y: Any, where: str) -> Any:
        if where != norm:
            return y
        y -= tf.reduce_mean(y, -1, keepdims=True)
        return y * tf.math.rsqrt(tf.reduce_mean(y**2, -1, keepdims=True) + 1e-6)

    @tf.function(autograph=False)
    def kernels(*weights: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            q, k, v, o, *perceptron = weights
            h = normalised(tokens, "before")
            query = tf.einsum("d,thdn->thn", h[middle], q) / d**0.5
            key, value = (tf.einsum("ld,thdn->thln", h, w) / d**0.5 for w in (k, v))
            a = tf.nn.softmax(tf.einsum("thn,thln->thl", query, key) / n**0.5)
            attended = tf.einsum("thl,thln->thn", a, value)
            y = tf.einsum("thn,thnd->td", attended, o) / (heads * n) ** 0.5
            if perceptron:
                y = normalised(y + tokens[middle], "after")
                h = tf.einsum("td,tde->te", normalised(y, "before"), perceptron[0])
                h = tf.nn.relu(h * (2 / d) ** 0.5)
                y += tf.einsum("te,ted->td", h, perceptron[1]) / (4 * d) ** 0.5
                y = normalised(y, "after")
            read = tf.reduce_sum(y[:, 0])
        squares = [g**2 for g in tape.gradient(read, weights)]
        return tf.add_n([tf.reduce_sum(each, range(1, len(each.shape))) for each in squares])

    found = []
    for size in _chunks(draws, _WEIGHTS // sum(map(math.prod, shapes))):
        drawn = [rng.standard_normal((size, *shape), np.float32) for shape in shapes]
        found.append(kernels(*map(tf.constant, drawn)).numpy())
    return np.concatenate(found)[:draws].astype(np.float64)


def _chunks(draws: int, most: int) -> list[int]:
    """Return equal sizes, of which none is above `most`: one graph computes them all."""
    count = math.ceil(draws / max(1, most))
    return [math.ceil(draws / count)] * count
