"""Bad values for every argument of layers."""

import numpy as np
from bad_input import BadInput, case
from bad_values import (
    Argument,
    Made,
    choice,
    count,
    flag,
    function,
    model,
    number,
    seed,
    text,
    thing,
    whole,
)
from valid_values import (
    LINEAR,
    dense_model,
    ensemble,
    keras_input,
    keras_object,
    lora_layer,
    network_of,
)

import ce_keras

CASES = [
    case("layers.Aggregate", cardinality=count(2), axis=whole(-1)),
    case(
        "layers.Aggregate.__call__",
        of=lambda: ce_keras.layers.Aggregate(4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8), "float32"), {"channels that do not divide": np.ones((1, 6), "float32")}
        ),
    ),
    case(
        "layers.CollegialConv2D",
        filters=count(4),
        kernel_size=count(3)
        .but("one for each axis", "an array")
        .also(three=(3, 3, 3), zeros=(0, 0), texts=("a", "b")),
        strides=count(1).also(three=(1, 1, 1), zeros=(0, 0), texts=("a", "b")),
        implementation=choice("auto", "native", "split"),
        **LINEAR,
    ),
    case(
        "layers.CollegialConv2D.__call__",
        of=lambda: ce_keras.layers.CollegialConv2D(4, 3, cardinality=4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8, 8, 4), "float32"),
            {"channels that do not divide": np.ones((1, 8, 8, 6), "float32")},
        ),
    ),
    case(
        "layers.CollegialDense",
        units=count(4),
        activation=keras_object("relu"),
        use_bias=flag(True),
        aggregate=flag(False),
        bias_initializer=keras_object("zeros", "None", "an array of texts"),
        kernel_regularizer=keras_object("l2", "in capitals", "None"),
        bias_regularizer=keras_object("l2", "in capitals", "None"),
        kernel_constraint=keras_object("non_neg", "None"),
        bias_constraint=keras_object("non_neg", "None"),
        lora_rank=count(1),
        lora_alpha=number(1.0),
        **LINEAR,
    ),
    case(
        "layers.CollegialDense.__call__",
        of=lambda: ce_keras.layers.CollegialDense(4, 4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8), "float32"), {"channels that do not divide": np.ones((1, 6), "float32")}
        ),
    ),
    case(
        "layers.CollegialDense.enable_lora",
        of=lora_layer,
        rank=count(1),
        lora_alpha=number(1.0),
        a_initializer=keras_object("he_uniform"),
        b_initializer=keras_object("zeros"),
    ),
    case(
        "layers.CollegialEnsemble",
        build_member=function(Made(dense_model))
        .but("it takes none", "of no arguments")
        .also(of_an_argument=lambda n: dense_model(), a_layer=Made(lora_layer), a_number=lambda: 1),
        cardinality=count(2),
        grouped=flag(True),
    ),
    case(
        "layers.CollegialEnsemble.get_member",
        of=ensemble,
        path=count(1).but("the first", "0", "drawn").also(three=3),
    ),
    case(
        "layers.CollegialEnsemble.set_member",
        of=ensemble,
        path=count(1).but("the first", "0", "drawn").also(three=3),
        member=model(Made(dense_model)).also(another=Made(lambda: network_of(3))),
    ),
    case("layers.CollegialLayerNormalization", cardinality=count(2)),
    case(
        "layers.CollegialLayerNormalization.__call__",
        of=lambda: ce_keras.layers.CollegialLayerNormalization(4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8), "float32"), {"channels that do not divide": np.ones((1, 6), "float32")}
        ),
    ),
    case("layers.accelerate", model=model(Made(dense_model)), verbose=flag(False)),
    case(
        "layers.collegial_bottleneck",
        x=thing(Made(lambda: keras_input((8, 8, 4)))).also(
            of_one_axis=Made(lambda: keras_input((8,)))
        ),
        filters=count(8),
        cardinality=count(2),
        width=count(2),
        strides=count(1),
        parameterization=choice("ntk", "standard"),
        data_format=choice("channels_last", "channels_first"),
        seed=seed(0),
        name=text(),
    ),
]

# Names that are not tested, and why.
WITHOUT = {
    **dict.fromkeys(
        ("layers.FusedBatchNormalization", "layers.GroupedConv1D", "layers.GroupedConv3D"),
        "its arguments are Keras' own",
    ),
}


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("layers",)
    WITHOUT = WITHOUT
