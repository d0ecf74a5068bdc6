"""Derive a design, look at its curve, build the network and train it.

python examples/quickstart.py [--epochs 1] [--images 2000]
"""

import argparse

import ce_keras

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--images", type=int, default=2000)
options = parser.parse_args()

# 1. The design, from a formula. The dual is smaller than the baseline and as easy to train.
solution = ce_keras.search("resnext11", mode="dual")
print(solution)

# 2. The curve it was read from. Near its top many designs are as good; the widest runs fastest.
solution.plot().figure.savefig("curve.png")
print("near-optimal designs:", *solution.near_optimal())

# 3. The model: an ordinary Keras model with grouped convolutions.
model = ce_keras.zoo.resnext11(
    cardinality=solution.design.cardinality, width=solution.design.width, seed=0
)

# 4. Train it on real images, like any other.
train, test = ce_keras.training.load_fashion_mnist()
subset = ce_keras.training.balanced(train, options.images)
batches = ce_keras.training.pipeline(subset, batch_size=64, seed=0)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(batches, epochs=options.epochs, shuffle=False)
loss, accuracy = model.evaluate(ce_keras.training.pipeline(test, 64, like=subset), verbose=0)
print(f"{model.name}: {model.count_params():,} parameters, test accuracy {accuracy:.1%}")
