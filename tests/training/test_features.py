"""Cached and computed features are the same bits; a key covers all that can change them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.data.batches import ArrayRows, RowSource, flip_rows, make_batches
from fmnist_tf.model.backbones import BACKBONES, build_backbone, find_backbone_spec
from fmnist_tf.model.classifier import build_classifier, build_extractor, split_classifier
from fmnist_tf.model.phases import find_kept_block
from fmnist_tf.training import features
from fmnist_tf.training.feature_store import FeatureStore
from fmnist_tf.training.features import (
    average_feature_maps,
    build_feature_function,
    cache_features,
    feature_key,
    rows_per_batch,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 784), np.uint8)
ROWS, SOURCE = np.arange(50), ArrayRows(PIXELS)


@pytest.fixture
def extractor(toy_classifier, toy_spec) -> keras.Model:
    return split_classifier(toy_classifier, "head").feature_extractor


def cache(path: Path, source: RowSource, compute: Any, shape: tuple[int, ...]) -> FeatureStore:
    store = FeatureStore(path, source.n_rows, shape, rows_per_shard=16)
    options = {"batch_size": 4, "progress": lambda done, total: None, "say": pytest.fail}
    cache_features([store], source, compute, **options)
    return store


@pytest.mark.parametrize("stage", ["head", "conv2/1"])
def test_batches_are_the_same_bits_cached_and_computed(
    toy_classifier, toy_spec, tmp_path: Path, stage: str, precision: str
) -> None:
    extractor = split_classifier(toy_classifier, stage).feature_extractor
    compute = build_feature_function(extractor, precision)
    store = cache(tmp_path / "key", ArrayRows(PIXELS), compute, extractor.output_shape[1:])
    inside_a_step = tf.function(lambda x: compute(x), autograph=False)
    rows = np.random.default_rng(1).permutation(50)
    for batch_size in (1, 3, 49):
        cached = make_batches(store, np.zeros(50, np.int64), rows, batch_size)
        pixels = make_batches(ArrayRows(PIXELS), np.zeros(50, np.int64), rows, batch_size)
        for (from_disk, _), (raw, _) in zip(cached, pixels, strict=True):
            computed = inside_a_step(raw)
            assert from_disk.dtype == computed.dtype == tf.bfloat16
            np.testing.assert_array_equal(from_disk, computed)
    expected = np.asarray(extractor(PIXELS.reshape(-1, 28, 28), training=False))
    if precision == "float32":
        # bfloat16 keeps eight bits of the mantissa.
        found = store.take(ROWS).astype(np.float32)
        np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-3)


class BatchSize(keras.layers.Layer):
    """Returns how many images are computed together."""

    def call(self, x):
        return keras.ops.zeros_like(x) + keras.ops.cast(keras.ops.shape(x)[0], x.dtype)


def test_no_image_is_computed_alone() -> None:
    inputs = keras.Input((28, 28), dtype="uint8")
    together = keras.Model(inputs, BatchSize()(keras.layers.Rescaling(1.0)(inputs)))
    compute = build_feature_function(together, "float32")
    for size, expected in ((1, 2), (2, 2), (5, 5)):
        found = compute(PIXELS[:size])
        assert (found.shape, found.dtype) == ((size, 28, 28), tf.bfloat16)
        assert np.all(found.numpy() == expected)


@pytest.mark.slow
def test_resnet50_differs_rarely_and_in_the_last_bit(tmp_path: Path) -> None:
    """Its kernels may round differently for other batch sizes."""
    spec, side = find_backbone_spec("resnet50", 64)
    keras.utils.set_random_seed(0)
    classifier = build_classifier(
        build_backbone(spec, side), spec.value_range,
        head="gap", units=5, dropout=0.0, n_classes=3, seed=0,
    )  # fmt: skip
    split = split_classifier(classifier, "head")
    compute = build_feature_function(split.feature_extractor, "float32", pools=split.pools_features)
    store = cache(tmp_path / "key", ArrayRows(PIXELS), compute, split.feature_shape)
    cached = store.take(ROWS).view(np.int16)
    for size in (1, 7, 50):
        parts = [compute(PIXELS[start : start + size]) for start in range(0, 50, size)]
        bits = np.concatenate([np.asarray(part) for part in parts]).view(np.int16)
        assert np.abs(bits - cached).max() <= 1
        assert np.mean(bits != cached) < 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "toy",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "resnet50",
                "vgg16",
                "efficientnet-lite0",
                "mobilenetv3small",
                "densenet121",
            )
        ),
    ],
)
def test_features_are_the_same_bits_computed_alone_and_together(
    toy_spec, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    """So a cache may be filled by either."""
    monkeypatch.setitem(BACKBONES, "toy", toy_spec)
    spec, side = find_backbone_spec(name, 64)
    keras.utils.set_random_seed(0)
    classifier = build_classifier(
        build_backbone(spec, side), spec.value_range,
        head="flatten", units=5, dropout=0.0, n_classes=3, seed=0,
    )  # fmt: skip
    labels = ("head", find_kept_block(classifier, "auto"))
    together = build_feature_function(build_extractor(classifier, *labels), precision)(PIXELS)
    for label, found in zip(labels, together, strict=True):
        alone = build_feature_function(build_extractor(classifier, label), precision)(PIXELS)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(alone))


def test_averaged_cached_maps_are_the_features_of_a_pooled_head(
    extractor: keras.Model, tmp_path: Path, precision: str
) -> None:
    """Otherwise the numbers of a run would depend on what an earlier run cached."""
    shape = extractor.output_shape[1:]
    compute = build_feature_function(extractor, precision)
    maps = cache(tmp_path / "maps", ArrayRows(PIXELS), compute, shape)
    averaged = cache(tmp_path / "averaged", maps, average_feature_maps, shape[2:]).take(ROWS)
    pooled = build_feature_function(extractor, precision, pools=True)
    direct = cache(tmp_path / "direct", ArrayRows(PIXELS), pooled, shape[2:]).take(ROWS)
    np.testing.assert_array_equal(averaged, direct)
    mean = maps.take(ROWS).astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(direct.astype(np.float64), mean, rtol=2**-8, atol=1e-6)


def test_batches_have_at_most_the_pixels_of_32_images_at_224() -> None:
    sides = (28, 64, 96, 128, 160, 224, 448, 5000)
    assert [rows_per_batch(side) for side in sides] == [128, 128, 128, 64, 32, 32, 8, 1]


def test_key_depends_on_rows_weights_precision_engine_and_graph(
    extractor: keras.Model, toy_classifier, toy_spec
) -> None:
    def key(rows: RowSource = SOURCE, network=extractor, precision="float32", **engine) -> str:
        return feature_key(rows, network, precision, **engine)

    base = key()
    assert key(ArrayRows(PIXELS.copy())) == base
    changed = PIXELS.copy()
    changed[-1, -1] ^= 1
    deeper = split_classifier(toy_classifier, "conv2/1").feature_extractor
    others = {
        key(ArrayRows(changed)),
        key(ArrayRows(PIXELS[:-1])),
        key(ArrayRows(PIXELS[::-1])),
        key(flip_rows(ArrayRows(PIXELS))),
        key(precision="bfloat16"),
        *(key(engine=f"openvino {version}") for version in (1, 2)),
        key(network=deeper),
    }
    kernel = toy_classifier.get_layer("toy").get_layer("conv2_conv").kernel
    before = kernel.numpy()
    kernel.assign(before * 1.0001)
    others.add(key())
    assert len(others | {base}) == 10
    kernel.assign(before)
    assert key() == base


def test_key_reads_no_pixels(extractor: keras.Model) -> None:
    class Unreadable(ArrayRows):
        def take(self, rows: np.ndarray) -> np.ndarray:
            raise AssertionError

    known = ArrayRows(PIXELS).digest
    unread = Unreadable(np.zeros_like(PIXELS), known)  # whatever its array is
    assert feature_key(unread, extractor, "float32") == feature_key(
        ArrayRows(PIXELS), extractor, "float32"
    )


def test_key_depends_on_connections() -> None:
    """The same layers in the same order with the same weights, connected differently."""

    def build(wiring: str) -> keras.Model:
        inputs = tensor = keras.Input((28, 28))
        one, two, three = [tensor := keras.layers.Rescaling(2.0)(tensor) for _ in range(3)]
        ends = {
            "3 + 1": lambda: keras.layers.Add()([three, one]),
            "3 + 2": lambda: keras.layers.Add()([three, two]),
            "3, 1": lambda: [three, one],
            "3, 2": lambda: [three, two],
        }
        inner = keras.Model(inputs, ends[wiring]())
        outer = keras.Input((28, 28))
        return keras.Model(outer, inner(outer))

    def key(wiring: str) -> str:
        return feature_key(ArrayRows(PIXELS), build(wiring), "float32")

    wirings = ["3 + 1", "3 + 2", "3, 1", "3, 2"]
    keys = [key(wiring) for wiring in wirings]
    assert len(set(keys)) == len(wirings)
    assert [key(wiring) for wiring in wirings] == keys  # whatever names Keras gave this time


@pytest.mark.parametrize("nested", [False, True])
def test_key_depends_on_the_settings_of_layers(nested: bool) -> None:
    def key(side: int) -> str:
        inputs = keras.Input((28, 28, 1))
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Resizing(side, side)(inputs))
        model = keras.Model(inputs, pooled)
        if nested:
            outer = keras.Input((28, 28, 1))
            model = keras.Model(outer, model(outer))
        return feature_key(ArrayRows(PIXELS), model, "float32")

    assert key(16) == key(16) != key(24)


def test_key_depends_on_versions_and_on_what_chooses_the_kernels(
    extractor: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        return feature_key(ArrayRows(PIXELS), extractor, "float32")

    variables = [
        "DNNL_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE",
        "ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS",
    ]  # fmt: skip
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(features, "read_cpu_features", lambda: {"avx2", "lm"})
    keys = {key()}
    for name in variables:
        with monkeypatch.context() as patch:
            patch.setenv(name, "0")
            keys.add(key())
    for owner, name, other in (
        (features, "FORMAT", 99),
        (features, "read_cpu_features", lambda: {"avx2", "lm", "amx_bf16"}),
        (features, "usable_cpus", lambda: set(range(77))),
        (platform, "machine", lambda: "abacus"),
        (keras, "__version__", "0"),
        (tf, "__version__", "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            keys.add(key())
    assert len(keys) == 1 + len(variables) + 6
    monkeypatch.setattr(features, "read_cpu_features", lambda: {"avx2"})
    assert key() in keys  # the others choose no kernel
