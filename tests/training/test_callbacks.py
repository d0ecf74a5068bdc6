import time

import keras
import numpy as np

from ce_keras.training import StepTimer


def fit(callbacks, epochs=2):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(
        np.zeros((40, 3)), np.zeros((40, 1)), 10, epochs=epochs, verbose=0, callbacks=callbacks
    )


def test_every_step_is_timed_and_the_first_do_not_count():
    timer = StepTimer(skip=3)
    fit([timer])
    assert len(timer.seconds) == 8
    assert timer.median == sorted(timer.seconds[3:])[2]
    assert StepTimer.median.fget(_with([5.0, 1.0], skip=5)) == 3.0


def _with(seconds, skip):
    timer = StepTimer(skip)
    timer.seconds = seconds
    return timer


def test_a_slow_step_takes_longer():
    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.05)

    timer = StepTimer()
    fit([Slow(), timer])
    assert timer.median > 0.05
