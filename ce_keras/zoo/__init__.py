"""The zoo: ResNeXts, Wide ResNets and fully connected networks, in any design.

    model = ce_keras.zoo.resnext50(mode="dual")
    model = ce_keras.zoo.create("resnext50_12x10d")

The functions of ResNeXts have the arguments of `keras.applications`, in the same order.
"""

from ce_keras.designs import PUBLISHED, Published, choose_design, published
from ce_keras.layers.flops import trained_parameters
from ce_keras.zoo.catalogue import NETWORKS, Entry, create, entries, list_models
from ce_keras.zoo.convert import from_applications, from_torch, to_torch
from ce_keras.zoo.images import decode_predictions, preprocess_input
from ce_keras.zoo.perceptron import fully_connected
from ce_keras.zoo.preprocessing import Preprocessing, preprocessing
from ce_keras.zoo.resnext import (
    Constructor,
    build_resnext,
    resnet50,
    resnet101,
    resnet152,
    resnext11,
    resnext11c,
    resnext29,
    resnext38,
    resnext50,
    resnext101,
    resnext152,
)
from ce_keras.zoo.weights import load_weights, published_weights, save_weights
from ce_keras.zoo.wide_resnet import wide_resnet

__all__ = [
    "NETWORKS",
    "PUBLISHED",
    "Constructor",
    "Entry",
    "Preprocessing",
    "Published",
    "build_resnext",
    "choose_design",
    "create",
    "decode_predictions",
    "entries",
    "from_applications",
    "from_torch",
    "fully_connected",
    "list_models",
    "load_weights",
    "preprocess_input",
    "preprocessing",
    "published",
    "published_weights",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext11",
    "resnext11c",
    "resnext29",
    "resnext38",
    "resnext50",
    "resnext101",
    "resnext152",
    "save_weights",
    "to_torch",
    "trained_parameters",
    "wide_resnet",
]
