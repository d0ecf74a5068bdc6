import keras
import numpy as np
import pytest

from ce_keras.training.optimizer import CoupledSGD, OneCycleSchedule, StepSchedule

SHAPES = [(3, 4), (4,), (1,)]


def by_hand(weights, gradients, rates, momentum, decay):
    """PyTorch's documented update, in float64."""
    weights = [weight.astype(float) for weight in weights]
    velocities = [np.zeros_like(weight) for weight in weights]
    for step, rate in zip(gradients, rates, strict=True):
        for index, gradient in enumerate(step):
            pull = gradient + decay * weights[index]
            velocities[index] = momentum * velocities[index] + pull
            weights[index] = weights[index] - rate * velocities[index]
    return weights


def by_torch(weights, gradients, rates, momentum, decay):
    torch = pytest.importorskip("torch", reason="`make torch` installs it")
    parameters = [torch.nn.Parameter(torch.from_numpy(weight.copy())) for weight in weights]
    optimizer = torch.optim.SGD(parameters, rates[0], momentum, weight_decay=decay)
    for step, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


@pytest.mark.parametrize("reference", [by_hand, by_torch])
@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 5e-4), (0.9, 0.0), (0.0, 0.1)])
def test_steps_are_pytorchs(reference, momentum, decay, rng):
    weights = [rng.normal(size=shape).astype("float32") for shape in SHAPES]
    gradients = [[rng.normal(size=s).astype("float32") for s in SHAPES] for _ in range(12)]
    schedule = StepSchedule(0.1, [4, 8], divide_by=10)
    rates = [0.1] * 4 + [0.01] * 4 + [0.001] * 4
    variables = [keras.Variable(weight) for weight in weights]
    optimizer = CoupledSGD(schedule, momentum, decay)
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in step], variables)
    for ours, theirs in zip(
        variables, reference(weights, gradients, rates, momentum, decay), strict=True
    ):
        # Twelve steps of a few roundings each.
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=100 * 2**-24)


def test_keras_decay_is_another_recipe(rng):
    weights, gradients = [np.ones(3, "float32")], [[np.ones(3, "float32")]] * 5
    variables = [keras.Variable(weights[0])]
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
    ours = by_hand(weights, gradients, [0.1] * 5, 0.9, 0.1)[0]
    assert abs(variables[0].numpy() - ours).max() > 0.01


def test_warm_up():
    schedule = StepSchedule(0.4, [10], divide_by=4, warmup=4)
    rates = [float(schedule(step)) for step in (0, 1, 3, 9, 10)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.4, 0.4, 0.1], rtol=1e-6)


def test_one_cycle_rises_to_its_peak_and_falls_to_zero():
    schedule = OneCycleSchedule(0.2, 200)
    rates = [float(schedule(step)) for step in (0, 25, 50, 125, 199, 200, 500)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.1, 0.2 / 150, 0, 0], rtol=1e-5, atol=1e-9)
    assert OneCycleSchedule.from_config(schedule.get_config()).steps == 200


def test_it_is_saved_and_loaded_with_its_state(tmp_path, rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(CoupledSGD(StepSchedule(0.1, [3]), 0.8, 0.01), "mse")
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 2))
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for one in (model, loaded):
        one.fit(x, y, epochs=2, verbose=0, shuffle=False)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay: Keras' kind is decoupled"),
        ({"momentum": 1.0}, "momentum: got 1.0"),
        ({"decay": -1}, "decay: got -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CoupledSGD(**options)
