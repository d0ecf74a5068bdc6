"""Strategies: where a run computes, on one device, several, or several machines.

A recipe takes the same steps on all of them: a batch is that of all replicas together, the loss and
its gradient are means over all its images, and batch normalisation sees all of them.
"""

from __future__ import annotations

import functools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.keras_internals import all_layers
from ce_keras.training.input_pipeline import Shard

#: Images and labels.
Batch = tuple[Any, Any]


class Strategy(ABC):
    """The devices that train and test a model.

    Attributes:
        replicas: number of copies of the model that share a batch.
        shard: the part of every batch that this process feeds.
        is_chief: whether this process is the one that writes files.
        is_alone: whether no other process waits for this one.
    """

    replicas = 1
    shard = Shard()
    is_chief = True
    is_alone = True

    @abstractmethod
    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which models and optimisers are built."""

    @abstractmethod
    def batches(self, dataset: Callable[[], Any]) -> Iterable[Batch]:
        """Return batches of a dataset of this process' shard, an element for each replica."""

    def broadcast(self, content: Any, arrays: Sequence[np.ndarray] = ()) -> tuple[Any, Any]:
        """Return the values of the chief worker: plain values, and arrays of equal shapes."""
        return content, list(arrays)


def find_strategy(devices: Sequence[str] = ()) -> Strategy:
    """Return the strategy for the devices of this process, and of those it works with.

    On TensorFlow: the workers that `TF_CONFIG` names (`MultiWorkerMirroredStrategy`), or all GPUs
    (`MirroredStrategy`), or the only device. On JAX: all devices
    (`keras.distribution.DataParallel`).

    With several machines, this must come before any TensorFlow operation.

    Args:
        devices: names, such as `"gpu:0"`; all of the best kind if not given.

    Raises:
        ValueError: for names that are not devices, or given beside `TF_CONFIG`; on PyTorch.
    """
    return _strategy(tuple(devices))


# One for a process: TensorFlow's collectives do not survive a second strategy.
@functools.cache
def _strategy(names: tuple[str, ...]) -> Strategy:
    backend = keras.backend.backend()
    if backend == "jax":
        return JaxStrategy(names)
    if backend != "tensorflow":
        raise ValueError(f"KERAS_BACKEND: training needs tensorflow or jax; it is {backend}")
    workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    if sum(len(workers.get(kind, ())) for kind in ("chief", "worker")) > 1:
        if names:
            raise ValueError(f"devices: got {list(names)}, but TF_CONFIG names workers already")
        return TensorFlowStrategy(tf.distribute.MultiWorkerMirroredStrategy())
    known = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    chosen = [name.upper() for name in names] or [name for name in known if name.startswith("GPU")]
    unknown = sorted(set(chosen) - set(known))
    if unknown or len(set(chosen)) < len(chosen):
        raise ValueError(f"devices: got {list(names)}; there are {', '.join(known).lower()}")
    if len(chosen) > 1:
        return TensorFlowStrategy(tf.distribute.MirroredStrategy(chosen))
    if names:
        return TensorFlowStrategy(tf.distribute.OneDeviceStrategy(chosen[0]))
    return TensorFlowStrategy(tf.distribute.get_strategy())


def set_synchronized(model: keras.Model, synchronized: bool) -> None:
    """Set whether batch normalisation sees all replicas' images, or each replica's own."""
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized


class TensorFlowStrategy(Strategy):
    """A `tf.distribute` strategy; steps are run by its `run`."""

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        worker, workers = _place(strategy)
        each = self.replicas // workers
        self.shard = Shard(worker * each, (worker + 1) * each, self.replicas)
        self.is_chief = worker == 0
        self.is_alone = workers == 1

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which models and optimisers are built."""
        return self._strategy.scope()

    def batches(self, dataset: Callable[[], Any]) -> Iterable[Batch]:
        """Return the dataset's elements, distributed to the replicas."""
        return self._strategy.distribute_datasets_from_function(lambda _: dataset())

    def run(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Run a function on every replica, and return the result of this process' first."""
        return self._strategy.experimental_local_results(self._strategy.run(function, inputs))[0]

    def broadcast(self, content: Any, arrays: Sequence[np.ndarray] = ()) -> tuple[Any, Any]:
        """Return the values of the chief worker, by sums to which the others add zeros."""
        if self.is_alone:
            return content, list(arrays)
        text = np.frombuffer(json.dumps(content).encode(), np.uint8).astype(np.int32)
        length = self._broadcast([np.array(len(text), np.int32)])[0]
        text = text if self.is_chief else np.zeros(length, np.int32)
        (text,) = self._broadcast([text])
        values = json.loads(text.astype(np.uint8).tobytes())
        return values, self._broadcast(arrays) if arrays else []

    def _broadcast(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        mine = [tf.constant(a if self.is_chief else np.zeros_like(a)) for a in arrays]

        def replica() -> Any:
            context = tf.distribute.get_replica_context()
            # Only the first replica of the chief worker adds its values.
            first = context.replica_id_in_sync_group == 0
            own = [tf.where(first, each, tf.zeros_like(each)) for each in mine]
            return [context.all_reduce("SUM", each) for each in own]

        sums = tf.function(lambda: self.run(replica), autograph=False)()
        return [np.asarray(each) for each in sums]


def _place(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Return the index of this worker, and the number of workers."""
    resolver: Any = getattr(strategy, "cluster_resolver", None)
    spec = resolver.cluster_spec().as_dict() if resolver is not None else {}
    chiefs, workers = (len(spec.get(kind, ())) for kind in ("chief", "worker"))
    if chiefs + workers <= 1:
        return 0, 1
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0), chiefs + workers


class JaxStrategy(Strategy):
    """The devices of one process by `keras.distribution.DataParallel`.

    A batch is one array, on whatever devices its rows are: there is one replica.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        known = keras.distribution.list_devices()
        if set(names) - set(known):
            raise ValueError(f"devices: got {list(names)}; there are {', '.join(known)}")
        self._devices = list(names) or known
        self._distribution = keras.distribution.DataParallel(
            devices=self._devices, auto_shard_dataset=False
        )

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Return the context in which models and optimisers are built."""
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(self._distribution)
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)

    def batches(self, dataset: Callable[[], Any]) -> Iterable[Batch]:
        """Yield batches, split over the devices where they can be, or copied to each."""
        for batch in dataset().as_numpy_iterator():
            images, labels = batch
            if len(labels) % len(self._devices) == 0:
                layout = self._distribution.get_data_layout
                images, labels = (
                    keras.distribution.distribute_tensor(each, layout(each.shape)) for each in batch
                )
            yield images, labels
