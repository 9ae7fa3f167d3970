"""The fused optimizers give Keras' numbers; decay, rate factors, clipping and averages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.training.optimizers import build_optimizer, update_averages

SHAPES = {"dense/kernel": (7, 5), "dense/bias": (5,), "conv/kernel": (3, 3, 2, 4)}
STEPS = 6


def build_variables() -> list[keras.Variable]:
    rng = np.random.default_rng(0)
    variables = []
    for path, shape in SHAPES.items():
        layer, name = path.split("/")
        with keras.name_scope(layer):
            variables.append(keras.Variable(rng.normal(size=shape).astype("float32"), name=name))
    return variables


def gradients_of(step: int) -> list[tf.Tensor]:
    rng = np.random.default_rng([1, step])
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in SHAPES.values()]


def rate_of(step: int) -> float:
    return 0.01 * (step + 1)


def run_steps(optimizer, variables, steps=range(STEPS), gradients=gradients_of):
    """Apply the steps; return the variables' and the optimizer's values."""
    optimizer.build(variables)

    @tf.function(autograph=False)
    def apply(*gradients) -> None:
        optimizer.apply(gradients, variables)

    for step in steps:
        optimizer.learning_rate.assign(rate_of(step))
        apply(*gradients(step))
    return [v.numpy() for v in variables], [v.numpy() for v in optimizer.variables]


def spare_vectors(optimizer: Any, variables: list[keras.Variable]) -> Any:
    """Exclude the variables that we do not decay."""
    optimizer.exclude_from_weight_decay([v for v in variables if len(v.shape) < 2])
    return optimizer


PAIRS = {
    "adam": ({"name": "adam"}, lambda: keras.optimizers.Adam()),
    "adamw": ({"name": "adamw"}, lambda: keras.optimizers.AdamW()),
    "adamw, strong decay": (
        {"name": "adamw", "weight_decay": 0.5},
        lambda: keras.optimizers.AdamW(weight_decay=0.5),
    ),
    "adam, clipped": (
        {"name": "adam", "clip_norm": 0.5},
        lambda: keras.optimizers.Adam(global_clipnorm=0.5),
    ),
    "sgd": ({"name": "sgd"}, lambda: keras.optimizers.SGD(momentum=0.9, nesterov=True)),
    "sgd, decay": (
        {"name": "sgd", "weight_decay": 0.1},
        lambda: keras.optimizers.SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "sgd, no momentum": ({"name": "sgd", "momentum": 0}, lambda: keras.optimizers.SGD()),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_same_as_keras(pair: str) -> None:
    settings, build_stock = PAIRS[pair]
    variables = build_variables()
    start = [v.numpy() for v in variables]
    stock = run_steps(spare_vectors(build_stock(), variables), variables)
    fused = run_steps(build_optimizer(**settings), build_variables())
    for ours, keras_, before in zip(fused[0], stock[0], start, strict=True):
        # The kernel rounds 1 - 0.999 to float32, Keras does not: 13 millionths of a moment.
        np.testing.assert_allclose(ours - before, keras_ - before, rtol=2e-5, atol=2e-6)
    for ours, keras_ in zip(fused[1], stock[1], strict=True):
        np.testing.assert_allclose(ours, keras_, rtol=2e-5, atol=1e-6)


def test_only_kernels_decay() -> None:
    variables = build_variables()
    start = [v.numpy() for v in variables]
    ours, _ = run_steps(
        build_optimizer("adamw", weight_decay=0.5, rate_factors={"conv/kernel": 0.1}),
        variables,
        gradients=lambda step: [tf.zeros(shape) for shape in SHAPES.values()],
    )
    kept, kept_slowly = (
        np.prod([1 - factor * rate_of(step) * 0.5 for step in range(STEPS)]) for factor in (1, 0.1)
    )
    np.testing.assert_allclose(ours[0], start[0] * kept, rtol=1e-6)
    np.testing.assert_array_equal(ours[1], start[1])
    np.testing.assert_allclose(ours[2], start[2] * kept_slowly, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_factor_scales_the_learning_rate_of_its_variable(name: str) -> None:
    whole, _ = run_steps(build_optimizer(name), build_variables())
    factors = {"dense/kernel": 0.25, "dense/bias": 0.0}
    mixed, _ = run_steps(build_optimizer(name, rate_factors=factors), build_variables())
    quarter = build_optimizer(name, rate_factors=dict.fromkeys(SHAPES, 0.25))
    slow, _ = run_steps(quarter, build_variables())
    assert np.abs(slow[0] - whole[0]).max() > 0.01
    np.testing.assert_array_equal(mixed[0], slow[0])
    np.testing.assert_array_equal(mixed[1], build_variables()[1].numpy())
    np.testing.assert_array_equal(mixed[2], whole[2])


def test_a_factor_of_an_unknown_variable() -> None:
    optimizer = build_optimizer("adam", rate_factors={"dense/kernel": 1, "dense/kernle": 0.5})
    with pytest.raises(ValueError, match=r"unknown variables: dense/kernle$"):
        optimizer.build(build_variables())


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_variables_are_the_whole_state(name: str) -> None:
    straight, _ = run_steps(build_optimizer(name), build_variables())
    variables, broken = build_variables(), build_optimizer(name)
    _, state = run_steps(broken, variables, steps=range(3))
    resumed = build_optimizer(name)
    resumed.build(variables)
    for variable, value in zip(resumed.variables, state, strict=True):
        variable.assign(value)
    ours, _ = run_steps(resumed, variables, steps=range(3, STEPS))
    for one, other in zip(ours, straight, strict=True):
        np.testing.assert_array_equal(one, other)


def test_invalid_settings() -> None:
    with pytest.raises(ValueError, match="lion"):
        build_optimizer("lion")
    with pytest.raises(ValueError, match="weight decay"):
        build_optimizer("adam", weight_decay=0.1)


def compare_under_replicas() -> None:
    """Compare with Keras under `tf.distribute`, in a process without devices yet."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

    def run(build: Callable[[], Any], devices: list[str]) -> list[np.ndarray]:
        strategy = tf.distribute.MirroredStrategy(devices)
        with strategy.scope():
            variables = build_variables()
            averages = [keras.Variable(v.numpy(), trainable=False) for v in variables]
            optimizer = spare_vectors(build(), variables)
            optimizer.build(variables)

            def in_replica(*gradients: tf.Tensor) -> None:
                # Each replica sees another gradient; they are summed.
                number = tf.distribute.get_replica_context().replica_id_in_sync_group
                fraction = tf.cast(number + 1, tf.float32)
                optimizer.apply([gradient * fraction for gradient in gradients], variables)

            @tf.function(autograph=False)
            def step(gradients: list[tf.Tensor]) -> None:
                strategy.run(in_replica, gradients)
                update_averages(averages, variables, 0.9, optimizer.iterations - 1)

            for number in range(STEPS):
                optimizer.learning_rate.assign(rate_of(number))
                step(gradients_of(number))
        changed = [*variables, *averages, *optimizer.variables]
        for variable in changed:
            copies = strategy.experimental_local_results(variable.value)
            assert len(copies) == len(devices), variable.path
            for copy in copies:
                np.testing.assert_array_equal(copy.numpy(), copies[0].numpy())
        return [variable.numpy() for variable in changed]

    for name in ("adam", "adamw", "sgd"):  # Keras clips before it sums
        settings, build_stock = PAIRS[name]
        for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
            expected = run(build_stock, devices)
            ours = run(lambda settings=settings: build_optimizer(**settings), devices)
            for one, other in zip(ours, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
            print(f"{name}: the same on {len(devices)}")


@pytest.mark.slow
def test_same_as_keras_under_one_and_two_replicas() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_optimizers; "
        "test_optimizers.compare_under_replicas()"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.count("the same on 2") == 3


def test_averages_move_towards_the_variables() -> None:
    variables = [tf.Variable([0.0, 8.0]), tf.Variable([[2.0]])]
    averages = [tf.Variable(variable) for variable in variables]
    update = tf.function(update_averages, autograph=False)
    table = [
        (5.0, 4.5),  # step 0: d = 1/10, so 9/10 of the way from 0 to 5
        (4.0, 45 / 11),  # step 1: d = 2/11, so 9/11 of the way from 4.5 to 4
        (0.0, 9 / 11),  # step 2: the decay, 2/10, is less than 3/12: 8/10 of the way to 0
    ]
    for step, (value, expected) in enumerate(table):
        variables[0].assign([value, 8.0])
        update(averages, variables, 0.2, tf.constant(step, tf.int64))
        np.testing.assert_allclose(averages[0], [expected, 8], rtol=1e-6)
    np.testing.assert_array_equal(averages[1], [[2.0]])
