"""Make a trained model smaller: calibrate, distil, evaluate, export.

python examples/compress_trained_model.py [model.keras] [--images 10000] [--epochs 3]
"""

import argparse

import keras

import ce_keras
from ce_keras.training import balanced, load_fashion_mnist

parser = argparse.ArgumentParser()
parser.add_argument("model", nargs="?", help="of 28x28 grey images; trained here if not given")
parser.add_argument("--images", type=int, default=10_000)
parser.add_argument("--epochs", type=int, default=3)
options = parser.parse_args()
train, test = load_fashion_mnist()
train = balanced(train, options.images)
settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
if options.model:  # 1. Load a model, or train one.
    model = keras.models.load_model(options.model)
else:
    hidden = [keras.layers.Dense(200, "relu", kernel_initializer="he_normal") for _ in range(4)]
    flat = [keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    model = keras.Sequential([*flat, *hidden, keras.layers.Dense(10, "softmax")])
    model.compile("adam", **settings)
    model.fit(*train, batch_size=100, epochs=2 * options.epochs, verbose=2)
# 2. Take the nearest of several designs, fitted to the model on images without labels.
smaller = ce_keras.collegialize(model, "dual", design="calibrated", data=train.images[:1000])
print(smaller.report)
# 3. Distil: the model is the teacher. This loss compares probabilities.
loss = keras.distillation.FeatureDistillation(loss="kl_divergence")
distiller = keras.distillation.Distiller(model, smaller, loss)
distiller.compile(keras.optimizers.Adam(3e-4), **settings)
distiller.fit(*train, batch_size=100, epochs=options.epochs, verbose=2)
for each in (model, smaller):  # 4. Evaluate both, and export.
    each.compile(**settings)
    print(f"{each.count_params():,} parameters:", each.evaluate(*test, verbose=0, return_dict=True))
smaller.export("smaller.tflite", format="litert")
