"""Compiled steps of training and testing, on TensorFlow and on JAX.

Steps do not wait for the device: their results are arrays that are fetched later, many at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from ce_keras.training.input_pipeline import PADDING_LABEL
from ce_keras.training.strategy import Batch, Strategy, TensorFlowStrategy

#: Losses of logits and labels, one for each image.
Losses = Callable[[Any, Any], Any]

#: Trains on a batch. Its second argument says whether this process is asked to end; it returns two
#: numbers on the device: the loss, and how many processes are asked to end.
TrainStep = Callable[[Batch, bool], Any]

#: Returns three numbers on the device: of a batch's images, of correct, and of top-5 correct ones.
TestStep = Callable[[Batch], Any]


def make_train_step(
    strategy: Strategy, model: keras.Model, optimizer: Any, losses: Losses
) -> TrainStep:
    """Return the function that trains a model on a batch."""
    if isinstance(strategy, TensorFlowStrategy):
        return _tensorflow_train_step(strategy, model, optimizer, losses)
    return _jax_train_step(model, optimizer, losses)


def make_test_step(strategy: Strategy, model: keras.Model) -> TestStep:
    """Return the function that counts a batch's images, and those that are correct."""
    if isinstance(strategy, TensorFlowStrategy):
        return _tensorflow_test_step(strategy, model)
    return _jax_test_step(model)


def count_correct(logits: Any, labels: Any) -> Any:
    """Return the numbers of images, of correct ones, and of top-5 correct ones.

    Images with `PADDING_LABEL` do not count.
    """
    true = keras.ops.take_along_axis(logits, keras.ops.maximum(labels, 0)[:, None], axis=-1)
    above = keras.ops.sum(logits > true, axis=-1)
    # NaN is not above anything; an image with such a logit is not correct.
    correct = [keras.ops.isfinite(true[:, 0]) & (above < k) for k in (1, 5)]
    counted = labels != PADDING_LABEL
    return keras.ops.stack(
        [keras.ops.sum(keras.ops.cast(each & counted, "int32")) for each in (counted, *correct)]
    )


def _tensorflow_train_step(
    strategy: TensorFlowStrategy, model: keras.Model, optimizer: Any, losses: Losses
) -> TrainStep:
    replicas = strategy.replicas
    scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    inner = optimizer.inner_optimizer if scaling else optimizer
    # Keras sums gradients over the replicas after it has clipped them, and after it has checked
    # that they are finite. Where it does either, they are summed before, and every replica then
    # contributes an equal part of the sum.
    clipping = replicas > 1 and inner.global_clipnorm is not None
    sum_before = replicas > 1 and (scaling or clipping)
    if clipping:
        inner.global_clipnorm /= replicas

    def replica(images: Any, labels: Any, asked: Any) -> Any:
        context = tf.distribute.get_replica_context()
        count = context.all_reduce("SUM", tf.cast(tf.size(labels), tf.float32))
        with tf.GradientTape() as tape:
            logits = tf.cast(model(images, training=True), tf.float32)
            loss = tf.reduce_sum(losses(logits, labels)) / count
            scaled = optimizer.scale_loss(loss) if scaling else loss
        variables = model.trainable_variables
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        if sum_before:
            gradients = context.all_reduce("SUM", gradients)
            gradients = [gradient / replicas for gradient in gradients]
        optimizer.apply(gradients, variables)
        return context.all_reduce("SUM", tf.stack([loss, asked]))

    @tf.function(autograph=False, reduce_retracing=True)
    def step(images: Any, labels: Any, asked: Any) -> Any:
        return strategy.run(replica, images, labels, asked)

    return lambda batch, asked: step(*batch, tf.constant(float(asked)))


def _tensorflow_test_step(strategy: TensorFlowStrategy, model: keras.Model) -> TestStep:
    def replica(images: Any, labels: Any) -> Any:
        logits = tf.cast(model(images, training=False), tf.float32)
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", count_correct(logits, tf.cast(labels, tf.int32)))

    @tf.function(autograph=False, reduce_retracing=True)
    def count(images: Any, labels: Any) -> Any:
        return strategy.run(replica, images, labels)

    return lambda batch: count(*batch)


def _jax_train_step(model: keras.Model, optimizer: Any, losses: Losses) -> TrainStep:
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
    def step(state: Any, images: Any, labels: Any, asked: Any) -> Any:
        trained, fixed, own = state
        gradients, (loss, fixed) = jax.grad(loss_of, has_aux=True)(
            trained, fixed, own, images, labels
        )
        trained, own = optimizer.stateless_apply(own, gradients, trained)
        return keras.ops.stack([loss, asked]), (trained, fixed, own)

    def train(batch: Batch, asked: bool) -> Any:
        state = [[variable.value for variable in kind] for kind in kinds]
        result, state = step(state, *batch, float(asked))
        for kind, values in zip(kinds, state, strict=True):
            for variable, value in zip(kind, values, strict=True):
                variable.assign(value)
        return result

    return train


def _jax_test_step(model: keras.Model) -> TestStep:
    import jax

    kinds = model.trainable_variables, model.non_trainable_variables

    @jax.jit
    def count(trained: Any, fixed: Any, images: Any, labels: Any) -> Any:
        logits, _ = model.stateless_call(trained, fixed, images, training=False)
        return count_correct(keras.ops.cast(logits, "float32"), labels)

    def test(batch: Batch) -> Any:
        return count(*([v.value for v in kind] for kind in kinds), *batch)

    return test
