"""LiteRT models of Keras models, and how long one takes for its outputs.

LiteRT (formerly TensorFlow Lite) is what phones run. It needs `pip install 'ce-keras[export]'`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ce_keras.checks import positive_int

#: A measurement goes on for so many calls, and so many seconds.
_CALLS, _SECONDS = 11, 0.2


def converted(
    model: Any, input_shape: Sequence[int], batch: int = 1, images: np.ndarray | None = None
) -> bytes:
    """Return a Keras model as a LiteRT model, for a batch of one size.

    Args:
        model: with one input and one output.
        input_shape: of one image, such as `(32, 32, 3)`.
        batch: number of images.
        images: examples, from which the ranges of all layers are found: weights and layers then
            compute in int8, but for inputs and outputs, which stay floats.

    Raises:
        ValueError: for a batch that is not a whole number above 0, fewer images than a batch, or
            where a package is missing.
    """
    import keras

    shape = (positive_int("batch", batch), *input_shape)
    options: dict[str, Any] = {}
    if images is not None:
        # Each of the size that the model takes; what is left over at the end is not used.
        groups = [images[i : i + batch] for i in range(0, len(images) - batch + 1, batch)]
        if not groups:
            raise ValueError(f"images: got {len(images)}; a batch of {batch} is needed at least")
        options["representative_dataset"] = lambda: ([np.float32(group)] for group in groups)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        signature = [keras.InputSpec(shape=shape, dtype="float32")]
        try:
            if images is not None:
                import tensorflow as tf

                options["optimizations"] = [tf.lite.Optimize.DEFAULT]
            model.export(path, "litert", verbose=False, input_signature=signature, **options)
        except ImportError as error:
            raise ValueError(f"LiteRT needs a package that is not installed: {error}") from None
        return path.read_bytes()


def runner(content: bytes, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of a batch of images that a LiteRT model computes.

    Args:
        content: the model, as `converted` returns it.
        threads: of the interpreter.

    Raises:
        ValueError: for threads that are not a whole number above 0, or where LiteRT is missing.
    """
    positive_int("threads", threads)
    try:
        from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(
            "LiteRT's interpreter is not installed: pip install 'ce-keras[export]'"
        ) from None
    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], np.asarray(images, given["dtype"]))
        interpreter.invoke()
        return interpreter.get_tensor(wanted["index"])

    return run


def litert_seconds(
    model: Any, input_shape: Sequence[int], batch: int = 1, threads: int = 1
) -> float:
    """Return the seconds that LiteRT takes for a batch: the median of repeated calls.

    Arguments are those of `converted` and `runner`.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> 0 < litert_seconds(model, (8, 8, 3)) < 1
    True
    """
    run = runner(converted(model, input_shape, batch), threads)
    images = np.zeros((batch, *input_shape), "float32")
    run(images)
    seconds: list[float] = []
    while len(seconds) < _CALLS or sum(seconds) < _SECONDS:
        begun = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)
