"""A network of keras.applications, made smaller by theory: no candidate is trained.

python examples/shrink_keras_applications.py [--size 224] [--steps 2]
"""

import argparse

import keras
import numpy as np

import ce_keras

parser = argparse.ArgumentParser()
parser.add_argument("--size", type=int, default=224, help="pixels of a side")
parser.add_argument("--steps", type=int, default=2)
options = parser.parse_args()

model = keras.applications.ResNet50(
    weights=None, input_shape=(options.size, options.size, 3), classes=10
)

# 1. What is in there? Nothing is built for this.
print(ce_keras.inspect(model, mode="dual"))

# 2. The same network as an ensemble of narrow paths, as smooth at initialisation, and smaller.
smaller = ce_keras.collegialize(model, mode="dual")
report = smaller.report
print(f"{report.before.params:,} parameters before, {report.after.params:,} after")

# 3. An ordinary Keras model with new weights. Train it as you would have trained the first.
#    (For a few steps it is quicker to run them as they come: leave that out for more.)
smaller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
images = np.random.default_rng(0).random((4, options.size, options.size, 3), dtype=np.float32)
smaller.fit(images, np.arange(4), batch_size=2, steps_per_epoch=options.steps, verbose=2)
smaller.save("smaller.keras")
