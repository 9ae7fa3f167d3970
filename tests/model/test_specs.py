"""Every backbone's spec passes the same tests at its minimum size; tests of large ones are slow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.data.batches import ArrayRows
from fmnist_tf.model.backbones import BACKBONES, BackboneSpec
from fmnist_tf.model.classifier import HEAD, build_classifier, find_backbone, split_classifier
from fmnist_tf.model.folding import fold_model
from fmnist_tf.model.networks import copy_weights
from fmnist_tf.model.phases import apply_plan, digest_weights, plan_phase, verify_plan
from fmnist_tf.model.preprocessing import preprocess
from fmnist_tf.training.feature_store import FEATURE_DTYPE
from fmnist_tf.training.loop import Trainer, TrainingPlan
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.schedules import RatePlan


def draw_images(n: int, seed: int) -> np.ndarray:
    """Return (n, 28, 28) uint8 of 7x7 grey patches; to a deep network noise images look alike."""
    patches = np.random.default_rng(seed).integers(0, 256, (n, 4, 4), np.uint8)
    return patches.repeat(7, axis=1).repeat(7, axis=2)


PIXELS = draw_images(6, seed=0)
QUICK = ("resnet8", "resnet6", "mlp")
# The parameters of each stage; the sums are those of keras.applications' own networks.
STAGES = {
    "resnet50": {
        "stem": 9_728, "conv2": 220_032, "conv3": 1_230_336, "conv4": 7_129_088,
        "conv5": 14_998_528,
    },
    "vgg16": {
        "stem": 38_720, "block2": 221_440, "block3": 1_475_328, "block4": 5_899_776,
        "block5": 7_079_424,
    },
    "efficientnetv2-b0": {
        "stem": 992, "block1": 4_672, "block2": 53_248, "block3": 136_832, "block4": 235_068,
        "block5": 961_224, "block6": 4_527_276,
    },
    "inceptionv3": {
        "stem": 173_072, "mixed0-2": 819_984, "mixed3-7": 7_982_208, "mixed8-10": 12_827_520,
    },
    "mobilenetv3": {
        "stem": 496, "block0": 808, "block1-2": 10_016, "block3-7": 183_824, "block8-10": 743_976,
    },
    "convnext-tiny": {
        "stem": 4_896, "stage0": 237_888, "stage1": 992_256, "stage2": 11_112_960,
        "stage3": 15_472_128,
    },
    "resnet8": {"stem": 208, "conv2": 4_736, "conv3": 14_720, "conv4": 58_112},
    "resnet6": {"stem": 416, "conv2": 18_688, "conv3": 370_176},
    "resnet18": {
        "stem": 416, "conv2": 37_376, "conv3": 132_352, "conv4": 526_848, "conv5": 2_102_272,
    },
    "mlp": {"stem": 0},
}  # fmt: skip
# Output shape at the default size.
OUTPUTS = {
    "resnet50": (7, 7, 2048),
    "vgg16": (7, 7, 512),
    "efficientnetv2-b0": (7, 7, 1280),
    "inceptionv3": (8, 8, 2048),
    "mobilenetv3": (7, 7, 576),
    "convnext-tiny": (7, 7, 768),
    "resnet8": (7, 7, 64),
    "resnet6": (7, 7, 128),
    "resnet18": (4, 4, 256),
    "mlp": (784,),
}
DRAWN = {"gamma": (0.8, 1.2), "beta": (-0.2, 0.2), "bias": (-0.2, 0.2)}


@dataclass(frozen=True)
class Built:
    """A spec and its classifier."""

    spec: BackboneSpec
    classifier: keras.Model

    @property
    def backbone(self) -> keras.Model:
        return find_backbone(self.classifier)


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> Built:
    """The classifier of a spec at its minimum size."""
    spec = BACKBONES[request.param]
    keras.utils.set_random_seed(1)
    backbone = spec.build(spec.min_size)
    classifier = build_classifier(
        backbone, spec.value_range, head="flatten", units=16, dropout=0.5, n_classes=3, seed=1
    )
    return Built(spec, classifier)


@pytest.fixture(scope="module")
def drawn(built: Built) -> Built:
    """The same with random weights of `draw_weights`."""
    draw_weights(built.backbone, built.spec)
    return built


def preprocessed(spec: BackboneSpec, pixels: np.ndarray) -> Any:
    """Return the input of the spec's backbone at its minimum size."""
    inputs = keras.Input((28, 28))
    outputs = preprocess(inputs, spec.value_range, spec.min_size)
    return keras.Model(inputs, outputs)(pixels, training=False)


def draw_weights(network: keras.Model, spec: BackboneSpec) -> None:
    """Draw weights under which images differ and no BatchNorm has its initial weights."""
    rng = np.random.default_rng(1)
    for weight in network.weights:
        if weight.name in DRAWN:
            weight.assign(rng.uniform(*DRAWN[weight.name], weight.shape))
        elif np.ptp(weight.numpy()) == 0:  # ConvNeXt's factors for each channel, initially 1e-6
            weight.assign(rng.uniform(*DRAWN["gamma"], weight.shape))
    # Deep in a network of random weights all images look alike unless BatchNorm fits them, and
    # rounding errors grow where it fits them exactly: so about the statistics of a batch.
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.trainable, norm.momentum = True, 0.0
    network(preprocessed(spec, draw_images(32, seed=1)), training=True)
    for norm in norms:
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        norm.moving_mean.assign(mean + rng.uniform(-0.2, 0.2, mean.shape) * variance**0.5)
        norm.moving_variance.assign(variance * rng.uniform(1.0, 1.8, mean.shape))


def each_spec(quick: tuple[str, ...] = QUICK) -> pytest.MarkDecorator:
    """Run a test for every spec; those not named are slow."""
    return pytest.mark.parametrize(
        "built",
        [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in STAGES],
        indirect=True,
    )


def test_the_tables_name_every_spec() -> None:
    assert list(STAGES) == list(OUTPUTS) == list(BACKBONES)
    assert all(name == spec.name for name, spec in BACKBONES.items())


@each_spec((*QUICK, "resnet50", "mobilenetv3"))
def test_every_layer_has_its_stage_and_every_stage_its_weights(built: Built) -> None:
    spec, backbone = built.spec, built.backbone
    prefixes = tuple(prefix for stage in spec.stages.values() for prefix in stage)
    for layer in backbone.layers:
        of_input = isinstance(layer, keras.layers.InputLayer)
        assert of_input or sum(layer.name.startswith(prefix) for prefix in prefixes) == 1
    counts = {stage: 0 for stage in spec.stages}
    for layer in backbone.layers:
        counts[spec.stage_of(layer.name)] += layer.count_params()
    assert list(counts.items()) == list(STAGES[spec.name].items())
    assert sum(counts.values()) == backbone.count_params()


@each_spec((*QUICK, "resnet50", "mobilenetv3"))
def test_it_has_only_public_keras_layers_without_random_state(built: Built) -> None:
    backbone = built.backbone
    assert backbone.operations == backbone.layers  # no operators
    assert not any(isinstance(layer, keras.Model) for layer in backbone.layers)
    assert {id(variable) for variable in backbone.variables} == {id(w) for w in backbone.weights}
    # Other classes are not found by a plain `load_model`.
    kinds = {type(layer) for layer in backbone.layers}
    assert all(getattr(keras.layers, kind.__name__, None) is kind for kind in kinds)


@each_spec()
def test_both_parts_compute_the_whole_for_every_cut(drawn: Built) -> None:
    expected = np.asarray(drawn.classifier(PIXELS, training=False))
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images matter
    names = [weight.path for weight in drawn.classifier.weights]
    for stage in [*list(drawn.spec.stages)[1:], HEAD]:
        split = split_classifier(drawn.classifier, stage)
        parts = (split.feature_extractor, split.trained_layers, split.output_layer)
        assert [weight.path for part in parts for weight in part.weights] == names
        extracted = split.feature_extractor(PIXELS, training=False)
        found = tf.nn.softmax(split.logits(extracted, training=False))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def to_array(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.cast(tensor, "float32"))


@each_spec((*QUICK, "mobilenetv3"))
def test_the_folded_twin_is_the_same_function(drawn: Built, precision: str) -> None:
    extractor = split_classifier(drawn.classifier, HEAD).feature_extractor
    expected = to_array(extractor(PIXELS, training=False))
    found = to_array(fold_model(extractor, precision, frozen=True)(PIXELS, training=False))
    if precision == "float32":
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    else:
        norms = np.linalg.norm(found) * np.linalg.norm(expected)
        assert (found * expected).sum() / norms >= 0.999


@each_spec()
def test_saved_model_loads_with_keras_alone(drawn: Built, tmp_path: Path) -> None:
    drawn.classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    expected = np.asarray(drawn.classifier(PIXELS, training=False))
    np.testing.assert_array_equal(loaded(PIXELS, training=False), expected)
    names = [layer.name for layer in find_backbone(loaded).layers]
    assert names == [layer.name for layer in drawn.backbone.layers]


@pytest.fixture
def eagerly():
    """Do not compile the one step of a test."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.parametrize(
    ("phase", "unfrozen"),
    [("frozen", lambda stages: ()), ("finetune", lambda stages: ()), ("finetune", lambda s: s[:1])],
    ids=["head", "deepest", "stem"],
)
@each_spec()
def test_one_step_changes_exactly_the_planned_weights(
    built: Built, eagerly: None, phase: str, unfrozen: Callable[[tuple], tuple]
) -> None:
    spec, classifier = built.spec, built.classifier
    draw_weights(built.backbone, spec)
    plan = plan_phase(classifier, phase, unfrozen(tuple(spec.stages)))
    apply_plan(classifier, plan)
    split = split_classifier(classifier, plan.lowest)
    rows = PIXELS.reshape(-1, 784)
    if split.has_frozen_layers:
        rows = split.feature_extractor(PIXELS, training=False).numpy().astype(FEATURE_DTYPE)
    before = digest_weights(classifier)
    one_step = Trainer(classifier, split, build_optimizer("adam")).run_epochs(
        ArrayRows(rows), np.arange(6) % 3, np.arange(6), np.arange(6),
        TrainingPlan(RatePlan("constant", 1e-3, 1, 1), 6, seed=0),
    )  # fmt: skip
    next(one_step)
    after = digest_weights(classifier)
    assert verify_plan(plan, before, after) == []
    moved = {path for path in before if before[path] != after[path]}
    assert moved == {weight.path for weight in plan.weights if weight.status == "trained"}


@each_spec((*QUICK, "mobilenetv3"))
def test_names_do_not_depend_on_what_was_built_before(built: Built) -> None:
    def names(backbone: keras.Model) -> list[tuple[str, list[str]]]:
        return [
            (layer.name, [weight.name for weight in layer.weights])
            for layer in backbone.layers
            if not isinstance(layer, keras.layers.InputLayer)  # Keras numbers its name
        ]

    again = built.spec.build(built.spec.min_size)
    assert names(again) == names(built.backbone)


@each_spec((*QUICK, "mobilenetv3"))
def test_it_is_the_network_whose_weights_are_published(built: Built) -> None:
    if built.spec.build_published is None:
        assert built.spec.name not in ("efficientnetv2-b0", "inceptionv3", "mobilenetv3")
        return
    side = built.spec.min_size
    published = built.spec.build_published(side)
    draw_weights(published, built.spec)
    copy_weights(published, built.backbone)
    images = preprocessed(built.spec, PIXELS)
    expected = np.asarray(published(images, training=False))
    found = np.asarray(built.backbone(images, training=False))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OUTPUTS))
def test_the_output_at_the_default_size(name: str) -> None:
    spec = BACKBONES[name]
    backbone = spec.build(spec.default_size)
    n_channels = spec.value_range.n_channels
    assert backbone.input_shape == (None, spec.default_size, spec.default_size, n_channels)
    assert backbone.output_shape[1:] == OUTPUTS[name]
    build_classifier(
        backbone, spec.value_range, head="flatten", units=2, dropout=0.5, n_classes=3, seed=0
    )


APPLICATIONS = {
    "resnet50": keras.applications.ResNet50,
    "vgg16": keras.applications.VGG16,
    "efficientnetv2-b0": keras.applications.EfficientNetV2B0,
    "inceptionv3": keras.applications.InceptionV3,
    "mobilenetv3": keras.applications.MobileNetV3Small,
    "convnext-tiny": keras.applications.ConvNeXtTiny,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(APPLICATIONS))
def test_published_weights_are_those_that_keras_would_fetch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskedFor(Exception):  # noqa: N818
        pass

    def get_file(fname: str, origin: str, *, file_hash: str, **options: Any) -> str:
        raise AskedFor(origin, file_hash)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(AskedFor) as caught:
        APPLICATIONS[name](include_top=False, input_shape=(224, 224, 3))
    pretrained = BACKBONES[name].pretrained
    assert pretrained is not None
    assert caught.value.args == (pretrained.url, pretrained.digest.removeprefix("md5:"))


def test_only_networks_of_keras_have_published_weights() -> None:
    assert {name for name, spec in BACKBONES.items() if spec.pretrained} == set(APPLICATIONS)
