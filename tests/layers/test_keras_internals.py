"""Every private name of Keras that the package relies on, in words where Keras changes it."""

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.layers import keras_internals


class Composite(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(2)

    def call(self, x):
        return self.inner(x)


def built():
    layer = Composite()
    layer(np.ones((1, 3)))
    return layer


def finds_inner_layers():
    layer = built()
    assert keras_internals.all_layers(layer) == [layer, layer.inner]


def finds_own_variables_of_frozen_layers():
    layer = built()
    layer.trainable = False
    own = [keras_internals.own_trainable_variables(each) for each in (layer, layer.inner)]
    assert own == [[], layer.inner.weights]


def unlocks_a_built_layer():
    layer = built()
    with keras_internals.unlocked(layer):
        layer.late = layer.add_weight(name="late", shape=(2,))
    assert any(weight is layer.late for weight in layer.weights)
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.later = layer.add_weight(name="later", shape=(2,))


def replaces_attributes_untracked():
    layer = built()
    inner, count = layer.inner, len(layer.weights)
    with keras_internals.replaced_attributes(layer, inner=layers.Dense(5), other=1):
        assert (layer.inner.units, layer.other) == (5, 1)
        assert len(layer.weights) == count
    assert layer.inner is inner
    assert not hasattr(layer, "other")


def finds_the_loss_that_a_model_was_compiled_with():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", len, metrics=["mae"])
    found = keras_internals.compile_arguments(model)
    assert found["loss"] is len
    assert found["metrics"] == ["mae"]


def runs_through_the_calls_of_a_model():
    x = keras.Input((3,))
    model = keras.Model(x, layers.ReLU()(layers.Dense(2)(x)))
    seen = []

    def call(operation, *args):
        seen.append(operation)
        return operation(*args)

    value = np.ones((1, 3), "float32")
    found = keras_internals.run_through(model, value, call)
    assert seen == model.layers[1:]
    np.testing.assert_array_equal(found, model(value))


def names_the_functions_of_keras():
    x = keras.Input((3,))
    model = keras.Model(x, keras.activations.relu(keras.ops.softplus(layers.Dense(2)(x))))
    names = [keras_internals.function_name(each) for each in model.operations]
    assert names[:2] == [None, None]
    assert [name.lower() for name in names[2:]] == ["softplus", "relu"]


def reads_frequencies_of_words():
    layer = layers.TextVectorization(output_mode="tf_idf")
    layer.set_vocabulary(["a", "b"], idf_weights=[0.5, 2.0])
    np.testing.assert_array_equal(keras_internals.learnt_frequencies(layer, 2), [0.5, 2.0])
    assert keras_internals.learnt_frequencies(layers.TextVectorization(), 2) is None


USES = {
    "all_layers": ("Layer._flatten_layers", finds_inner_layers),
    "own_trainable_variables": (
        "Layer._trainable_variables",
        finds_own_variables_of_frozen_layers,
    ),
    "unlocked": ("Layer._tracker.unlock and .lock", unlocks_a_built_layer),
    "replaced_attributes": (
        "that Layer.__dict__ can be written past its tracking",
        replaces_attributes_untracked,
    ),
    "compile_arguments": (
        "Model._compile_config.config",
        finds_the_loss_that_a_model_was_compiled_with,
    ),
    "run_through": ("Function._run_through_graph", runs_through_the_calls_of_a_model),
    "function_name": (
        "the modules keras.src.ops and keras.src.activations of its functions' classes",
        names_the_functions_of_keras,
    ),
    "learnt_frequencies": (
        "TextVectorization._lookup_layer, ._output_mode and .idf_weights_const",
        reads_frequencies_of_words,
    ),
}


@pytest.mark.parametrize("name", USES)
def test_keras_still_has_the_private_names_that_we_use(name):
    what, check = USES[name]
    try:
        check()
    except Exception as error:
        pytest.fail(
            f"Keras {keras.__version__} has changed {what}, which is not public: read "
            f"ce_keras.layers.keras_internals.{name}, and whether there is a public way by now "
            f"({type(error).__name__}: {error})"
        )


def test_every_function_that_uses_a_private_name_is_tried():
    functions = {
        name
        for name, value in vars(keras_internals).items()
        if getattr(value, "__module__", None) == keras_internals.__name__
    }
    assert functions == {*USES}
