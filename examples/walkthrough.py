# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a network to its optimal ensemble
#
# One wide path of a network is replaced by several narrow ones. How many, and how wide? First the
# answer, then why, then a model of your own, trained. This page is made of
# `examples/walkthrough.py`.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from matplotlib import pyplot

import ce_keras
from ce_keras import ntk

# %% [markdown]
# ## The answer
#
# The baseline is ResNeXt-29 with one path of width 128, written 1x128d. The dual asks for the
# smallest ensemble of paths whose tangent kernel varies as little from one random initialisation to
# the next.

# %%
solution = ce_keras.search("resnext29", mode="dual")
solution

# %%
_, axes = pyplot.subplots(1, 2, figsize=(11, 4))
for ax, mode in zip(axes, ("primal", "dual"), strict=True):
    ce_keras.search("resnext29", mode).plot(ax)

# %% [markdown]
# ## Why
#
# The tangent kernel of a finite network depends on its random initial weights. Here are the kernels
# of four thousand fully connected networks of each width, drawn in a second without building one,
# and their variance beside the exact one.

# %%
for width in (10, 30, 100, 300):
    kernels = ntk.chain_kernels([width] * 5, draws=4000, seed=0).sum(axis=1)
    exact = ntk.kernel_moments([width] * 5).relative_variance
    drawn = kernels.var() / kernels.mean() ** 2
    print(f"n = {width:3}: Var(K)/E[K]^2 = {drawn:.3f}, exact {exact:.3f}")

# %% [markdown]
# An ensemble's kernel is the mean of its paths' kernels: its standard deviation falls as one over
# the root of their number.

# %%
kernels = ntk.chain_kernels([30] * 5, draws=64_000, seed=0).sum(axis=1)
for paths in (1, 4, 16, 64):
    ensembles = kernels.reshape(-1, paths).mean(axis=1)
    print(f"m = {paths:2}: std / mean = {ensembles.std() / ensembles.mean():.3f}")

# %% [markdown]
# ## Your own model
#
# `collegialize` makes paths of the hidden layers of any dense Keras model, and of the bottlenecks
# of a ResNet.

# %%
keras.utils.set_random_seed(0)
hidden = [keras.layers.Dense(200, "relu") for _ in range(5)]
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        *hidden,
        keras.layers.Dense(10, "softmax"),
    ]
)
smaller = ce_keras.collegialize(model, mode="dual")
smaller.report

# %% [markdown]
# Both are trained alike, on images that come with the package.

# %%
images = int(os.environ.get("WALKTHROUGH_IMAGES", "4000"))
train, test = ce_keras.training.load_fashion_mnist()
train = ce_keras.training.balanced(train, images)
for name, each in {"baseline": model, "dual": smaller}.items():
    each.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    each.fit(train.images, train.labels, batch_size=50, epochs=3, verbose=0)
    _, accuracy = each.evaluate(test.images, test.labels, batch_size=500, verbose=0)
    print(f"{name}: {each.count_params():,} parameters, test error {100 * (1 - accuracy):.1f} %")

# %% [markdown]
# ## The kernel of the trained model
#
# `empirical_ntk` computes it for any Keras model; axes are those of neural-tangents.

# %%
x = test.images[:32].astype("float32")
kernel = ntk.empirical_ntk(smaller, x)
print(
    kernel.shape, f"alignment with the labels {ntk.label_alignment(kernel, test.labels[:32]):.2f}"
)
order = np.argsort(test.labels[:32], kind="stable")
_ = pyplot.imshow(kernel[order][:, order])
