"""A table of the kinds of layers, and of the tables of the package that know each.

Whoever adds a layer adds it here, and sees which of its rows are still to be written: in
`ce_keras.layers.layer_table.LAYERS`, and in the rules of the kernel in `ce_keras.ntk`.
"""

from keras import layers

from ce_keras import layers as ours
from ce_keras.layers.layer_table import LAYERS
from ce_keras.ntk.layer_rules import _RULES as RULES

# What the columns stand for.
RULE = "the rule of its kernel"
FAN_IN = "the fan-in of its linear maps"
PATHS = "its form for paths side by side"
SHARED = "its form on an input that all paths share"
SUM = "the layer that sums paths in its place"
NARROW = "what changes in its configuration for a path of fewer channels"

LINEAR = {RULE, FAN_IN, PATHS, SHARED, SUM, NARROW}
CHANNELWISE = {PATHS, SHARED}
KNOWN = {
    layers.Dense: LINEAR,
    layers.Conv2D: LINEAR,
    ours.CollegialDense: LINEAR,
    ours.CollegialConv2D: LINEAR,
    layers.EinsumDense: {RULE, FAN_IN},
    layers.Conv1D: {RULE, FAN_IN},
    layers.Conv3D: {RULE, FAN_IN},
    layers.Conv1DTranspose: {RULE, FAN_IN},
    layers.Conv2DTranspose: {RULE, FAN_IN},
    layers.Conv3DTranspose: {RULE, FAN_IN},
    layers.DepthwiseConv1D: {RULE, FAN_IN},
    layers.DepthwiseConv2D: {RULE, FAN_IN},
    layers.SeparableConv1D: {RULE, FAN_IN},
    layers.SeparableConv2D: {RULE, FAN_IN},
    layers.Embedding: {RULE},
    layers.BatchNormalization: {RULE, PATHS},
    ours.FusedBatchNormalization: {RULE, PATHS},
    layers.LayerNormalization: {RULE, PATHS},
    ours.CollegialLayerNormalization: {RULE, PATHS},
    layers.GroupNormalization: {RULE, PATHS, NARROW},
    layers.Reshape: {PATHS, NARROW},
    layers.PReLU: {PATHS},
    layers.Flatten: CHANNELWISE,
    layers.Activation: CHANNELWISE,
    layers.ReLU: CHANNELWISE,
    layers.LeakyReLU: CHANNELWISE,
    layers.ELU: CHANNELWISE,
    layers.Identity: CHANNELWISE,
    layers.Rescaling: CHANNELWISE,
    layers.MaxPooling2D: CHANNELWISE,
    layers.AveragePooling2D: CHANNELWISE,
    layers.GlobalMaxPooling2D: CHANNELWISE,
    layers.GlobalAveragePooling2D: CHANNELWISE,
    layers.ZeroPadding2D: CHANNELWISE,
    layers.Cropping2D: CHANNELWISE,
    layers.UpSampling2D: CHANNELWISE,
    layers.Add: CHANNELWISE,
    layers.Subtract: CHANNELWISE,
    layers.Multiply: CHANNELWISE,
    layers.Average: CHANNELWISE,
    layers.Maximum: CHANNELWISE,
    layers.Minimum: CHANNELWISE,
    # On a shared input, these would treat all paths as one: an error says so.
    layers.Dropout: CHANNELWISE,
    layers.SpatialDropout2D: CHANNELWISE,
    layers.AlphaDropout: CHANNELWISE,
    layers.GaussianNoise: CHANNELWISE,
    layers.GaussianDropout: CHANNELWISE,
    layers.ActivityRegularization: CHANNELWISE,
}
COLUMNS = {
    "fan_ins": FAN_IN,
    "on_paths": PATHS,
    "on_shared": SHARED,
    "summing": SUM,
    "narrowed": NARROW,
}


def test_each_table_knows_the_layers_that_are_listed_here():
    found = {
        kind: {COLUMNS[name] for name, value in row._asdict().items() if value is not None}
        for kind, row in LAYERS.items()
    }
    for kind in RULES:
        found.setdefault(kind, set()).add(RULE)
    assert found == KNOWN
