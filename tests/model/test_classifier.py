"""The classifier and its two parts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.model.backbones import BackboneSpec
from fmnist_tf.model.classifier import (
    build_classifier,
    find_standardization,
    set_statistics,
    split_classifier,
    use_statistics,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)


def build(spec: BackboneSpec, **options: Any) -> keras.Model:
    sizes = {"head": "flatten", "units": 5, "dropout": 0.5, "n_classes": 3, "seed": 0}
    return build_classifier(spec.build(16), spec.value_range, **{**sizes, **options})


def test_layers_in_order(toy_classifier) -> None:
    names = [layer.name for layer in toy_classifier.layers]
    after = names[names.index("resize") :]
    assert after == "resize value_range toy flatten hidden dropout probabilities".split()
    assert toy_classifier.input_shape == (None, 28, 28)
    assert toy_classifier.output_shape == (None, 3)
    assert toy_classifier.layers[-1].compute_dtype == "float32"


@pytest.mark.parametrize("head", ["flatten", "gap"])
@pytest.mark.parametrize("lowest", ["head", "conv2/1", "stem/1"])
def test_both_parts_compute_the_whole(toy_spec, head: str, lowest: str) -> None:
    classifier = build(toy_spec, head=head)
    split = split_classifier(classifier, lowest)
    assert split.has_frozen_layers == (lowest != "stem/1")
    assert split.pools_features == (head == "gap" and lowest == "head")
    features = split.feature_extractor(PIXELS, training=False)
    if split.pools_features:
        features = tf.reduce_mean(features, axis=(1, 2))
    assert split.feature_shape == features.shape[1:]
    probabilities = tf.nn.softmax(split.logits(features, training=False))
    expected = classifier(PIXELS, training=False)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_the_trained_layers_compute_in_the_given_precision(toy_classifier, toy_spec) -> None:
    for precision in ("float32", "bfloat16"):
        split = split_classifier(toy_classifier, "head", precision)
        assert split.trained_layers.get_layer("hidden").compute_dtype == precision


def test_features_are_standardized_with_the_statistics_that_are_set(toy_spec, tmp_path) -> None:
    classifier = build(toy_spec, standardize=True)
    split = split_classifier(classifier, "head")
    features = np.array(split.feature_extractor(PIXELS, training=False)).reshape(6, -1)
    layer = find_standardization(classifier)
    inner = keras.Model(classifier.input, layer.output)
    np.testing.assert_array_equal(inner(PIXELS), features)  # until then

    mean, variance = features.mean(axis=0), features.var(axis=0)
    variance[0] = 0.0  # a feature that hardly moves is not blown up
    set_statistics(layer, mean, variance)
    variance = np.maximum(variance, 1e-4 * variance.mean())
    expected = (features - mean) / np.sqrt(variance)
    np.testing.assert_allclose(inner(PIXELS), expected, rtol=1e-3, atol=1e-4)

    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    expected = classifier.predict(PIXELS, verbose=0)
    np.testing.assert_array_equal(loaded.predict(PIXELS, verbose=0), expected)
    logits = split.logits(split.feature_extractor(PIXELS, training=False), training=False)
    np.testing.assert_allclose(tf.nn.softmax(logits), expected, atol=1e-6)
    # Assigned weights are used only when the layer is told of them.
    other = build(toy_spec, standardize=True)
    other.set_weights(classifier.get_weights())
    use_statistics(other)
    np.testing.assert_array_equal(other.predict(PIXELS, verbose=0), expected)


def test_a_loaded_model_infers_unless_told_to_train(toy_classifier, tmp_path) -> None:
    toy_classifier.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    before = [weight.numpy() for weight in model.weights]
    expected = toy_classifier.predict(PIXELS, verbose=0)
    np.testing.assert_allclose(model(PIXELS), expected, atol=1e-6)
    for weight, was in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, was)
    assert np.abs(model(PIXELS, training=True) - expected).max() > 1e-3


@pytest.mark.parametrize("head", ["flatten", "gap"])
def test_the_code_of_the_docs_runs(toy_spec, tmp_path, monkeypatch, head: str) -> None:
    classifier = build(toy_spec, head=head)
    classifier.save(tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/model-keras.md").read_text()
    found: dict[str, Any] = {"PIXELS": PIXELS}
    for block in re.findall("```python\n(.*?)```", text, re.DOTALL):
        exec(block.replace("np.zeros((4, 28, 28), np.uint8)", "PIXELS"), found)
    np.testing.assert_allclose(found["same"], found["probabilities"], atol=1e-6)
    assert found["features"].shape == (6, 5)
    assert found["feature_maps"].shape == (6, 4, 4, 8)
    assert found["heat"].shape == (6, 4, 4)
    assert np.max(found["heat"]) > 0
    assert len(found["inner_maps"]) == 6


@pytest.mark.slow
def test_saved_model_needs_keras_alone(toy_classifier, tmp_path) -> None:
    toy_classifier.save(tmp_path / "model.keras")
    np.save(tmp_path / "pixels.npy", PIXELS)
    script = (
        "import sys, keras, numpy as np\n"
        "model = keras.saving.load_model('model.keras', safe_mode=True)\n"
        "np.save('out.npy', model.predict(np.load('pixels.npy'), verbose=0))\n"
        "assert not any(name.startswith('fmnist_tf') for name in sys.modules)\n"
    )
    # -I: neither the checkout nor PYTHONPATH is on the path
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True, timeout=120)
    expected = toy_classifier.predict(PIXELS, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_the_seed_decides_the_weights_of_the_head(toy_spec) -> None:
    def head_kernel(seed: int) -> np.ndarray:
        classifier = build(toy_spec, head="gap", seed=seed)
        return classifier.get_layer("hidden").kernel.numpy()

    np.testing.assert_array_equal(head_kernel(3), head_kernel(3))
    assert not np.array_equal(head_kernel(3), head_kernel(4))
