"""Make a network of keras.applications smaller; a formula, not a sweep, picks the design.

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

# 1. List what can become narrow paths, layer by layer. Nothing is built for this.
print(ce_keras.inspect(model, mode="dual"))

# 2. Build the same network with paths: smaller, and as easy to train.
smaller = ce_keras.collegialize(model, mode="dual")
report = smaller.report
print(f"{report.before.params:,} parameters before, {report.after.params:,} after")

# 3. Train it as you would have trained the first: its weights are new.
#    (`run_eagerly` is quicker for a few steps only: leave it out for more.)
smaller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
images = np.random.default_rng(0).random((4, options.size, options.size, 3), dtype=np.float32)
smaller.fit(images, np.arange(4), batch_size=2, steps_per_epoch=options.steps, verbose=2)
smaller.save("smaller.keras")  # Loaded after `import ce_keras`.
