"""What a run computes with: one device, several, or several machines.

The same recipe gives the same steps on all of them: the batch is that of all replicas together,
its loss and gradient are the mean over all its images, and batch normalisation sees all of them.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.fan_in import leaves
from ce_keras.training.feed import NOTHING, Part

#: Losses of logits and labels, one each.
Losses = Callable[[Any, Any], Any]
Batch = tuple[Any, Any]


class Devices(Protocol):
    """What trains and tests a model.

    Attributes:
        replicas: how many copies of the model share a batch.
        part: of every batch, what this process feeds.
        chief: whether this process is the one that writes files.
        alone: whether no other process waits for this one.
    """

    replicas: int
    part: Part
    chief: bool
    alone: bool

    def scope(self) -> AbstractContextManager[Any]:
        """Where models and optimisers are built."""

    def batches(self, feed: Callable[[], Any]) -> Iterable[Batch]:
        """A dataset of this process's part, an element for each replica, as batches."""

    def trainer(
        self, model: keras.Model, optimizer: Any, losses: Losses
    ) -> Callable[[Batch, bool], tuple[float, bool]]:
        """What takes a step.

        It takes a batch, and whether this process is asked to end; it returns the loss, and
        whether any process is.
        """

    def tester(self, model: keras.Model) -> Callable[[Batch], np.ndarray]:
        """What counts a batch's images, and those right at first and in five guesses."""

    def chiefs(self, content: Any, arrays: Sequence[np.ndarray] = ()) -> tuple[Any, Any]:
        """What the chief has: plain values, and arrays of the same shapes everywhere."""


def find_devices(names: Sequence[str] = ()) -> Devices:
    """The devices of this process, and of those it works with.

    On TensorFlow: the workers that `TF_CONFIG` names (`MultiWorkerMirroredStrategy`), or all GPUs
    (`MirroredStrategy`), or the one device there is. On JAX: all devices
    (`keras.distribution.DataParallel`).

    Several machines must ask for them before TensorFlow does anything else.

    Args:
        names: of devices, such as `"gpu:0"`; all of the best kind if not given.

    Raises:
        ValueError: for names that are not devices, or given beside `TF_CONFIG`; on PyTorch.
    """
    return _devices(tuple(names))


# One for a process: TensorFlow's collectives do not survive a second strategy.
@functools.cache
def _devices(names: tuple[str, ...]) -> Devices:
    backend = keras.backend.backend()
    if backend == "jax":
        return JaxDevices(names)
    if backend != "tensorflow":
        raise ValueError(f"KERAS_BACKEND: training needs tensorflow or jax; it is {backend}")
    workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    if sum(len(workers.get(kind, ())) for kind in ("chief", "worker")) > 1:
        if names:
            raise ValueError(f"devices: got {list(names)}, but TF_CONFIG names workers already")
        return TensorFlowDevices(tf.distribute.MultiWorkerMirroredStrategy())
    known = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    chosen = [name.upper() for name in names] or [name for name in known if name.startswith("GPU")]
    unknown = sorted(set(chosen) - set(known))
    if unknown or len(set(chosen)) < len(chosen):
        raise ValueError(f"devices: got {list(names)}; there are {', '.join(known).lower()}")
    if len(chosen) > 1:
        return TensorFlowDevices(tf.distribute.MirroredStrategy(chosen))
    if names:
        return TensorFlowDevices(tf.distribute.OneDeviceStrategy(chosen[0]))
    return TensorFlowDevices(tf.distribute.get_strategy())


def right(logits: Any, labels: Any) -> Any:
    """How many images there are, are right at first, and are right in five guesses."""
    true = keras.ops.take_along_axis(logits, keras.ops.maximum(labels, 0)[:, None], axis=-1)
    above = keras.ops.sum(logits > true, axis=-1)
    # Logits that are not numbers are above nothing: such an image is not right.
    found = [keras.ops.isfinite(true[:, 0]) & (above < guesses) for guesses in (1, 5)]
    counted = labels != NOTHING
    return keras.ops.stack(
        [keras.ops.sum(keras.ops.cast(each & counted, "int32")) for each in (counted, *found)]
    )


def synchronise(model: keras.Model, together: bool) -> None:
    """Whether batch normalisation sees all replicas' images, or each its own."""
    for layer in leaves(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = together


class TensorFlowDevices:
    """Devices by a `tf.distribute` strategy, and a loop on its `run`."""

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        worker, workers = _place(strategy)
        each = self.replicas // workers
        self.part = Part(worker * each, (worker + 1) * each, self.replicas)
        self.chief = worker == 0
        self.alone = workers == 1

    def scope(self) -> AbstractContextManager[Any]:
        """Where models and optimisers are built."""
        return self._strategy.scope()

    def batches(self, feed: Callable[[], Any]) -> Iterable[Batch]:
        """Elements of the dataset, dealt out to the replicas."""
        return self._strategy.distribute_datasets_from_function(lambda _: feed())

    def trainer(
        self, model: keras.Model, optimizer: Any, losses: Losses
    ) -> Callable[[Batch, bool], tuple[float, bool]]:
        """What takes a step."""
        scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        inner = optimizer.inner_optimizer if scaling else optimizer
        # Keras sums gradients over the replicas after it has clipped them, and after it has asked
        # whether they are finite: where it does either they are summed before, and of the sum
        # each replica hands in its share.
        clipping = self.replicas > 1 and inner.global_clipnorm is not None
        before = self.replicas > 1 and (scaling or clipping)
        if clipping:
            inner.global_clipnorm /= self.replicas

        def replica(images: Any, labels: Any, asked: Any) -> Any:
            context = tf.distribute.get_replica_context()
            count = context.all_reduce("SUM", tf.cast(tf.size(labels), tf.float32))
            with tf.GradientTape() as tape:
                logits = tf.cast(model(images, training=True), tf.float32)
                loss = tf.reduce_sum(losses(logits, labels)) / count
                scaled = optimizer.scale_loss(loss) if scaling else loss
            variables = model.trainable_variables
            gradients = tape.gradient(scaled, [variable.value for variable in variables])
            if before:
                gradients = context.all_reduce("SUM", gradients)
                gradients = [gradient / self.replicas for gradient in gradients]
            optimizer.apply(gradients, variables)
            return context.all_reduce("SUM", tf.stack([loss, asked]))

        @tf.function(autograph=False, reduce_retracing=True)
        def step(images: Any, labels: Any, asked: Any) -> Any:
            return self._first(self._strategy.run(replica, (images, labels, asked)))

        def train(batch: Batch, asked: bool) -> tuple[float, bool]:
            loss, any_asked = step(*batch, tf.constant(float(asked))).numpy()
            return float(loss), bool(any_asked)

        return train

    def tester(self, model: keras.Model) -> Callable[[Batch], np.ndarray]:
        """What counts a batch's images."""

        def replica(images: Any, labels: Any) -> Any:
            logits = tf.cast(model(images, training=False), tf.float32)
            context = tf.distribute.get_replica_context()
            return context.all_reduce("SUM", right(logits, tf.cast(labels, tf.int32)))

        @tf.function(autograph=False, reduce_retracing=True)
        def count(images: Any, labels: Any) -> Any:
            return self._first(self._strategy.run(replica, (images, labels)))

        return lambda batch: count(*batch).numpy()

    def chiefs(self, content: Any, arrays: Sequence[np.ndarray] = ()) -> tuple[Any, Any]:
        """What the chief has, by sums to which the others add nothing."""
        if self.alone:
            return content, list(arrays)
        text = np.frombuffer(json.dumps(content).encode(), np.uint8).astype(np.int32)
        length = self._chiefs([np.array(len(text), np.int32)])[0]
        text = text if self.chief else np.zeros(length, np.int32)
        (text,) = self._chiefs([text])
        return json.loads(text.astype(np.uint8).tobytes()), self._chiefs(arrays) if arrays else []

    def _chiefs(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        mine = [tf.constant(a if self.chief else np.zeros_like(a)) for a in arrays]

        def replica() -> Any:
            context = tf.distribute.get_replica_context()
            # A worker may have several replicas: the chief's first speaks.
            first = context.replica_id_in_sync_group == 0
            own = [tf.where(first, each, tf.zeros_like(each)) for each in mine]
            return [context.all_reduce("SUM", each) for each in own]

        share = tf.function(lambda: self._strategy.run(replica), autograph=False)
        return [np.asarray(self._first(each)) for each in share()]

    def _first(self, value: Any) -> Any:
        return self._strategy.experimental_local_results(value)[0]


def _place(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Which worker this is, and of how many."""
    resolver: Any = getattr(strategy, "cluster_resolver", None)
    spec = resolver.cluster_spec().as_dict() if resolver is not None else {}
    chiefs, workers = (len(spec.get(kind, ())) for kind in ("chief", "worker"))
    if chiefs + workers <= 1:
        return 0, 1
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0), chiefs + workers


class JaxDevices:
    """Devices of one process by `keras.distribution.DataParallel`."""

    replicas = 1  # The batch is one array, wherever its rows are.
    part = Part()
    chief = True
    alone = True

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
        """Where models and optimisers are built."""
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(self._distribution)
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)

    def batches(self, feed: Callable[[], Any]) -> Iterable[Batch]:
        """Batches, their rows dealt out to the devices; one that cannot be is on all of them."""
        for batch in feed().as_numpy_iterator():
            images, labels = batch
            if len(labels) % len(self._devices) == 0:
                layout = self._distribution.get_data_layout
                images, labels = (
                    keras.distribution.distribute_tensor(each, layout(each.shape)) for each in batch
                )
            yield images, labels

    def trainer(
        self, model: keras.Model, optimizer: Any, losses: Losses
    ) -> Callable[[Batch, bool], tuple[float, bool]]:
        """What takes a step."""
        import jax

        scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        kinds = model.trainable_variables, model.non_trainable_variables, optimizer.variables

        def loss_of(trained: Any, fixed: Any, own: Any, images: Any, labels: Any) -> Any:
            logits, fixed = model.stateless_call(trained, fixed, images, training=True)
            loss = keras.ops.mean(losses(keras.ops.cast(logits, "float32"), labels))
            if not scaling:
                return loss, (loss, fixed)
            with keras.StatelessScope(list(zip(optimizer.variables, own, strict=True))):
                return optimizer.scale_loss(loss), (loss, fixed)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: Any, images: Any, labels: Any) -> Any:
            trained, fixed, own = state
            gradients, (loss, fixed) = jax.grad(loss_of, has_aux=True)(
                trained, fixed, own, images, labels
            )
            trained, own = optimizer.stateless_apply(own, gradients, trained)
            return loss, (trained, fixed, own)

        def train(batch: Batch, asked: bool) -> tuple[float, bool]:
            state = [[variable.value for variable in kind] for kind in kinds]
            loss, state = step(state, *batch)
            for kind, values in zip(kinds, state, strict=True):
                for variable, value in zip(kind, values, strict=True):
                    variable.assign(value)
            return float(loss), asked

        return train

    def tester(self, model: keras.Model) -> Callable[[Batch], np.ndarray]:
        """What counts a batch's images."""
        import jax

        kinds = model.trainable_variables, model.non_trainable_variables

        @jax.jit
        def count(trained: Any, fixed: Any, images: Any, labels: Any) -> Any:
            logits, _ = model.stateless_call(trained, fixed, images, training=False)
            return right(keras.ops.cast(logits, "float32"), labels)

        def test(batch: Batch) -> np.ndarray:
            return np.asarray(count(*([v.value for v in kind] for kind in kinds), *batch))

        return test

    def chiefs(self, content: Any, arrays: Sequence[np.ndarray] = ()) -> tuple[Any, Any]:
        """What there is."""
        return content, list(arrays)
