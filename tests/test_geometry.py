import itertools

import numpy as np
import pytest

from ce_keras import geometry
from ce_keras.geometry import Design, Layer, Module, bottleneck, conv, dense, fully_connected

# Every parameter count that the published topologies decode to, to the last digit where known.
PARAMETERS = {
    "resnext29": {
        "1x128d": 13_775_000,
        "3x64d": 13_346_000,
        "37x10d": 13_744_000,
        "28x12d": 12_926_000,
        "1x226d": 36_345_000,
        "8x64d": 34_427_000,
        "101x10d": 36_309_000,
        "10x10d": 4_224_000,
        "8x12d": 4_192_000,
        "2x64d": 9_130_000,
        "14x10d": 5_634_000,
        "6x25d": 7_263_000,
        "3x58d": 11_569_000,
        "2x98d": 17_388_000,
    },
    "resnext50": {
        "1x64d": 25_557_000,
        "32x4d": 25_029_000,
        "12x10d": 25_758_000,
        "15x8d": 25_095_000,
        "3x23d": 19_357_000,
        "4x16d": 17_069_000,
    },
    "resnext101": {
        "1x64d": 44_549_000,
        "32x4d": 44_178_000,
        "12x10d": 45_475_000,
        "15x8d": 44_224_000,
        "3x23d": 32_905_000,
        "5x12d": 25_813_000,
    },
}
ROWS = [(name, design, count) for name, row in PARAMETERS.items() for design, count in row.items()]


@pytest.mark.parametrize(("name", "design", "thousands"), ROWS)
def test_parameters_of_every_published_design(name, design, thousands):
    count = geometry.resnext(name).params(*Design.parse(design))
    assert round(count, -3) == thousands


def test_resnext50_32x4d_has_the_parameters_and_operations_everyone_reports():
    network = geometry.resnext("resnext50")
    assert network.params(32, 4) == 25_028_904
    assert network.flops(32, 4) / 2e9 == pytest.approx(4.25, abs=0.03)  # multiply-adds


def test_bottleneck_fan_ins_and_parameters_are_the_papers():
    n = np.arange(1, 257)
    block = bottleneck(256)
    np.testing.assert_allclose(block.inverse_fan_in(n), 1 / 256 + 1 / (9 * n) + 1 / n, rtol=1e-15)
    np.testing.assert_array_equal(block.params(1, n), 512 * n + 9 * n**2)


def test_fully_connected_scales_its_width_vector_by_a_ratio():
    module = fully_connected(7, [20, 40, 10], outputs=3, bias=True)
    assert module.width == 40
    # Half of the baseline is 10, 20 and 5 wide.
    weights = 7 * 10 + 10 * 20 + 20 * 5 + 5 * 3
    assert module.params(1, 20) == weights + 10 + 20 + 5 + 3
    assert module.params(4, 20) == 4 * module.params(1, 20)
    assert module.inverse_fan_in(20) == pytest.approx(1 / 10 + 1 / 20 + 1 / 5)


def test_fully_connected_paths_never_vanish():
    assert fully_connected(7, [40, 4]).params(1, 1) == 7 * 1 + 1 * 1 + 1 * 1


def test_first_order_alpha_of_equal_widths_is_the_closed_form():
    for hidden, alpha in ((2, 3.22), (5, 3.44), (6, 3.48)):
        closed_form = 5 - (4 / 3) * (hidden + 2) / (hidden + 1)
        assert fully_connected(3, [50] * hidden).alpha == pytest.approx(closed_form)
        assert closed_form == pytest.approx(alpha, abs=0.005)


def test_first_order_alpha_of_unequal_widths_matches_random_networks(rng):
    # The kernel of a ReLU network in the NTK parameterisation, gradient by gradient.
    sizes, draws = [6, 30, 80, 50, 1], 20_000
    x = rng.standard_normal(sizes[0])
    kernel = np.zeros(draws)
    activations = [np.broadcast_to(x, (draws, sizes[0]))]
    weights = []
    for inputs, outputs in itertools.pairwise(sizes):
        weights.append(rng.standard_normal((draws, outputs, inputs), dtype=np.float32))
        gain = 1 if outputs == 1 else 2
        z = np.sqrt(gain / inputs) * np.einsum("toi,ti->to", weights[-1], activations[-1])
        activations.append(np.maximum(z, 0) if outputs > 1 else z)
    delta = np.ones((draws, 1))
    for layer in reversed(range(len(weights))):
        scale = np.sqrt((1 if layer == len(weights) - 1 else 2) / sizes[layer])
        # |outer(delta, a)|^2, summed over this layer's weights.
        kernel += (scale * delta**2).sum(1) * scale * (activations[layer] ** 2).sum(1)
        if layer > 0:
            delta = scale * np.einsum("to,toi->ti", delta, weights[layer])
            delta = delta * (activations[layer] > 0)
    module = fully_connected(sizes[0], sizes[1:-1])
    ratio = (kernel**2).mean() / kernel.mean() ** 2
    # Both means fluctuate; the delta method gives the ratio's standard error. The second-order
    # terms that the first-order exponent leaves out are about its square.
    influence = kernel**2 / kernel.mean() ** 2 - 2 * ratio * kernel / kernel.mean()
    error = influence.std() / np.sqrt(draws)
    exponent = module.alpha * module.inverse_fan_in(module.width)
    assert abs(np.log(ratio) - exponent) < 4 * error / ratio + exponent**2


def test_users_describe_their_own_module():
    basic = Module("basic", width=64, path=lambda n: [conv(64, n, 3), conv(n, 64, 3)])
    assert basic.params(2, 10) == 2 * (9 * 64 * 10 + 9 * 10 * 64)
    assert basic.inverse_fan_in(10) == pytest.approx(1 / (9 * 64) + 1 / 90)


def test_layers_count_bias_normalisation_and_positions():
    layer = Layer(fan_in=27, outputs=8, positions=100, bias=True, norm=True)
    assert layer.params == 27 * 8 + 8 + 16
    assert layer.flops == 2 * 27 * 8 * 100
    assert dense(5, 4).params == 20
    assert conv(3, 8, kernel=3) == Layer(27, 8)


def test_a_network_is_its_fixed_layers_and_its_paths():
    network = geometry.resnext("resnext29")
    fixed, one, two = (network.params(m, 16) for m in (0, 1, 2))
    assert two - one == one - fixed > 0


def test_design_reads_and_prints_itself():
    design = Design.parse("37x10d")
    assert design == (37, 10)
    assert str(design) == "37x10d"


@pytest.mark.parametrize("text", ["37x10", "x10d", "0x10d", "3x0d", "37 x 10d", ""])
def test_design_refuses_what_it_cannot_read(text):
    with pytest.raises(ValueError, match="design: got"):
        Design.parse(text)


def test_baselines_by_name():
    assert geometry.baseline("resnext29").width == 128
    assert geometry.baseline("resnext29-1x226d").width == 226
    assert geometry.baseline("figure3").params(1, 500) == 748 * 500 + 4 * 500**2 + 500


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnext92", r"unknown name 'resnext92'.*resnext29.*figure3"),
        ("resnet50", "did you mean 'resnext50'"),
        ("resnext29-8x64d", "a baseline is one path, such as 'resnext29-1x64d'"),
        ("resnext29-wide", "design: got 'wide'"),
    ],
)
def test_baselines_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        geometry.baseline(name)


@pytest.mark.parametrize(
    "arguments", [{"inputs": 0}, {"widths": []}, {"widths": [3, 0]}, {"outputs": -1}]
)
def test_fully_connected_refuses_sizes_that_are_not_positive(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: got"):
        fully_connected(**{"inputs": 3, "widths": [4], **arguments})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fully_connected(7, [2.5]), "widths: got 2.5"),
        (lambda: fully_connected(7, [3, 0]), "widths: got 0"),
        (lambda: fully_connected(7, []), "widths: got \\[\\]"),
        (lambda: fully_connected(0, [3]), "inputs: got 0"),
        (lambda: bottleneck(0, 10), "channels: got 0"),
        (lambda: bottleneck(256, -1), "width: got -1"),
        (lambda: Module("float", 64.0, lambda n: [dense(1, n)]), "width: got 64.0"),
        (lambda: geometry.resnext("resnext29", -5), "width: got -5"),
    ],
)
def test_sizes_are_whole_and_positive(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_costs_beyond_whole_numbers_of_64_bits_are_counted():
    module = Module("c", 2**20, lambda n: [conv(n, n, 3, positions=10**6)], 1.0)
    (of_array,) = module.flops(1, np.array([2**20]))
    assert of_array == pytest.approx(module.flops(1, 2**20))
