"""Every backbone passes the same tests at its smallest size; tests of most networks are slow.

`make test-networks ARGS=-s` prints a line for each network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import ismodule
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tf.data.batches import ArrayRows
from fmnist_tf.errors import UsageError
from fmnist_tf.model.applications import list_applications
from fmnist_tf.model.backbones import (
    BACKBONES,
    BackboneSpec,
    build_backbone,
    build_published,
    find_backbone_spec,
)
from fmnist_tf.model.blocks import Block, cut_backbone, find_blocks, list_stages
from fmnist_tf.model.classifier import HEAD, build_classifier, find_backbone, split_classifier
from fmnist_tf.model.folding import fold_model
from fmnist_tf.model.phases import apply_plan, digest_weights, plan_phase, verify_plan
from fmnist_tf.settings.backbones import read_table
from fmnist_tf.training.feature_store import FEATURE_DTYPE
from fmnist_tf.training.loop import Trainer
from fmnist_tf.training.optimizers import build_optimizer
from fmnist_tf.training.records import TrainingPlan
from fmnist_tf.training.schedules import RatePlan


def draw_images(n: int, seed: int) -> np.ndarray:
    """Return (n, 28, 28) uint8 of 7x7 grey patches; to a deep network noise images look alike."""
    patches = np.random.default_rng(seed).integers(0, 256, (n, 4, 4), np.uint8)
    return patches.repeat(7, axis=1).repeat(7, axis=2)


PIXELS = draw_images(6, seed=0)
APPLICATIONS = list_applications()
NAMES = [*BACKBONES, *APPLICATIONS]
QUICK = ("resnet8", "resnet6", "resnet8p", "mlp", "efficientnet-lite0")
SLOW = ("resnet18", "resnet50", "vgg16", "mobilenetv3small", "efficientnetv2b0", "convnexttiny")
SMALLEST = {"inceptionresnetv2": 75, "inceptionv3": 75, "xception": 71}
DRAWN = {"gamma": (0.8, 1.2), "beta": (-0.2, 0.2), "bias": (-0.2, 0.2)}


@dataclass(frozen=True)
class Built:
    """A network with drawn weights, in Keras' layout and as the package uses it."""

    spec: BackboneSpec
    side: int
    published: keras.Model
    classifier: keras.Model

    @property
    def backbone(self) -> keras.Model:
        return find_backbone(self.classifier)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return find_blocks(self.backbone)


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    """A network at its smallest size."""
    started = time.perf_counter()
    spec, side = find_backbone_spec(request.param, SMALLEST.get(request.param, 32))
    keras.utils.set_random_seed(1)
    published = build_published(spec, side)
    draw_weights(published, spec, side)
    built = Built(spec, side, published, build(spec, spec.simplify(published)))
    yield built
    stages = " ".join(list_stages(built.blocks))
    print(f"{spec.name:20} {side:3} {time.perf_counter() - started:5.0f} s  {stages}")


def build(spec: BackboneSpec, backbone: keras.Model) -> keras.Model:
    sizes = {"units": 16, "dropout": 0.5, "n_classes": 3}
    return build_classifier(backbone, spec.value_range, head="flatten", seed=1, **sizes)


def official_input(spec: BackboneSpec, pixels: np.ndarray, side: int) -> Any:
    """Return (B, S, S, C) as Keras' own network takes it."""
    x = keras.ops.image.resize(pixels[..., None].astype(np.float32), (side, side))
    if spec.name not in APPLICATIONS:
        return x * np.float32(spec.value_range.scale) + np.float32(spec.value_range.offset)
    modules = [module for module in vars(keras.applications).values() if ismodule(module)]
    rgb = np.repeat(x, 3, axis=-1)
    module = next((m for m in modules if hasattr(m, APPLICATIONS[spec.name])), None)
    return module.preprocess_input(rgb) if module else rgb  # else it is in the network


def draw_weights(network: keras.Model, spec: BackboneSpec, side: int) -> None:
    """Draw weights under which images differ and no BatchNorm has its initial weights."""
    rng = np.random.default_rng(1)
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            if layer.weights:  # EfficientNet's are in its file
                variance = np.float32([0.229, 0.224, 0.225]) ** 2
                layer.set_weights([np.float32([0.485, 0.456, 0.406]), variance, np.int32(1)])
                layer.finalize_state()
            continue
        for weight in layer.weights:
            if weight.name in DRAWN:
                weight.assign(rng.uniform(*DRAWN[weight.name], weight.shape))
            elif np.ptp(weight.numpy()) == 0:  # ConvNeXt's factors for each channel are 1e-6
                weight.assign(rng.uniform(*DRAWN["gamma"], weight.shape))
    # Deep in a network of random weights all images look alike unless BatchNorm fits them, and
    # rounding errors grow where it fits them exactly: so about the statistics of a batch.
    before = [(norm.trainable, norm.momentum) for norm in norms]
    for norm in norms:
        norm.trainable, norm.momentum = True, 0.0
    network(official_input(spec, draw_images(32, seed=1), side), training=True)
    for norm, (norm.trainable, norm.momentum) in zip(norms, before, strict=True):
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        norm.moving_mean.assign(mean + rng.uniform(-0.2, 0.2, mean.shape) * variance**0.5)
        norm.moving_variance.assign(variance * rng.uniform(1.0, 1.8, mean.shape))


def each_network(*quick: str) -> pytest.MarkDecorator:
    """Run a test for every network; those not named are slow, most of them for `test-networks`."""

    def mark(name: str) -> Any:
        own = [] if name in SLOW else [pytest.mark.networks]
        return name if name in quick else pytest.param(name, marks=[pytest.mark.slow, *own])

    return pytest.mark.parametrize("built", [mark(name) for name in NAMES], indirect=True)


def is_close(found: Any, expected: Any, tolerance: float) -> bool:
    expected, found = (np.asarray(keras.ops.cast(x, "float32")) for x in (expected, found))
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


@each_network(*QUICK, "resnet50", "mobilenetv3small")
def test_it_has_only_public_keras_layers_without_random_state(built: Built) -> None:
    backbone = built.backbone
    assert backbone.operations == backbone.layers  # no operators
    assert not any(isinstance(layer, keras.Model) for layer in backbone.layers)
    assert {id(variable) for variable in backbone.variables} == {id(w) for w in backbone.weights}
    # Other classes are not found by a plain `load_model`.
    kinds = {type(layer) for layer in backbone.layers}
    assert all(getattr(keras.layers, kind.__name__, None) is kind for kind in kinds)


@each_network(*QUICK)
def test_names_do_not_depend_on_what_was_built_before(built: Built) -> None:
    def names(backbone: keras.Model) -> list[tuple[str, list[str]]]:
        return [(layer.name, [w.name for w in layer.weights]) for layer in backbone.layers]

    assert names(build_backbone(built.spec, built.side)) == names(built.backbone)


def test_the_table_has_the_names_of_all_networks() -> None:
    assert read_table().keys() - {"toy"} == {*NAMES}


@each_network(*QUICK, "resnet50", "mobilenetv3small")
def test_the_table_has_the_names_of_all_blocks(built: Built) -> None:
    named = [(stage, b) for stage, of in read_table()[built.spec.name].items() for b in of]
    assert [(block.stage, block.name) for block in built.blocks] == named


@each_network(*QUICK, "resnet50", "mobilenetv3small")
def test_one_tensor_leaves_each_block(built: Built) -> None:
    layers, blocks = built.backbone.layers, built.blocks
    assert [name for block in blocks for name in block.layers] == [layer.name for layer in layers]
    assert len({block.label for block in blocks}) == len(blocks)
    stages = [block.stage for block in blocks]
    assert list(list_stages(blocks)) == [  # consecutive
        stage for n, stage in enumerate(stages) if n == 0 or stage != stages[n - 1]
    ]
    block_of = {name: number for number, block in enumerate(blocks) for name in block.layers}
    ends = {block.layers[-1] for block in blocks}
    for layer in layers:
        for node in layer._inbound_nodes:
            for tensor in node.input_tensors:
                name = tensor._keras_history.operation.name
                assert block_of[layer.name] - block_of[name] in ((0, 1) if name in ends else (0,))


@each_network("resnet50", "mobilenetv3small")
def test_it_computes_what_keras_own_network_computes(built: Built) -> None:
    expected = built.published(official_input(built.spec, PIXELS, built.side), training=False)
    expected = np.asarray(expected)
    ours = keras.Model(built.classifier.input, built.classifier.layers[-4].input)
    assert is_close(ours(PIXELS, training=False), expected, 1e-4)
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()  # the images matter


@each_network(*QUICK)
def test_every_cut_is_folded_to_the_same_function(built: Built) -> None:
    for stage in list_stages(built.blocks):
        cut = cut_backbone(built.backbone, stage)
        classifier = build(built.spec, cut)
        extractor = split_classifier(classifier, HEAD).feature_extractor
        expected = extractor(PIXELS, training=False)
        assert is_close(fold_model(extractor, "float32", frozen=True)(PIXELS), expected, 1e-4)
        assert list_stages(find_blocks(cut))[-1] == stage


@each_network(*QUICK)
def test_both_parts_compute_the_whole_at_every_split(built: Built) -> None:
    expected = built.classifier(PIXELS, training=False)
    names = [weight.path for weight in built.classifier.weights]
    for stage in list_stages(built.blocks)[1:]:
        lowest = next(block.label for block in built.blocks if block.stage == stage)
        split = split_classifier(built.classifier, lowest)
        parts = (split.feature_extractor, split.trained_layers, split.output_layer)
        assert [weight.path for part in parts for weight in part.weights] == names
        extracted = split.feature_extractor(PIXELS, training=False)
        assert is_close(tf.nn.softmax(split.logits(extracted, training=False)), expected, 1e-4)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Do not compile the one step of a test."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.parametrize(
    ("phase", "n_unfrozen"),
    [("frozen", 0), ("finetune", 0), ("finetune", 1)],
    ids=["head", "deepest", "stem"],
)
@each_network(*QUICK)
def test_one_step_changes_exactly_the_planned_weights(
    built: Built, eagerly: None, phase: str, n_unfrozen: int
) -> None:
    classifier = built.classifier
    initial = classifier.get_weights()
    plan = plan_phase(classifier, phase, list_stages(built.blocks)[:n_unfrozen])
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
    classifier.set_weights(initial)


@each_network(*QUICK)
def test_saved_model_loads_with_keras_alone(built: Built, tmp_path: Path) -> None:
    built.classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    expected = np.asarray(built.classifier(PIXELS, training=False))
    np.testing.assert_array_equal(loaded(PIXELS, training=False), expected)
    assert find_blocks(find_backbone(loaded)) == built.blocks


def count_parameters(name: str, side: int) -> dict[str, int]:
    spec, side = find_backbone_spec(name, side)
    backbone = build_backbone(spec, side)
    counts: dict[str, int] = {}
    for block in find_blocks(backbone):
        own = sum(backbone.get_layer(layer).count_params() for layer in block.layers)
        counts[block.stage] = counts.get(block.stage, 0) + own
    return counts


# The sums are those of keras.applications' own networks, and of the papers.
PARAMETERS = {
    "resnet50": {
        "stem": 9_728, "conv2": 220_032, "conv3": 1_230_336, "conv4": 7_129_088,
        "conv5": 14_998_528,
    },
    "resnet8": {"stem": 208, "conv2": 4_736, "conv3": 14_720, "conv4": 58_112},
    "resnet6": {"stem": 416, "conv2": 18_688, "conv3": 370_176},
    "resnet8p": {"stem": 624, "conv2": 208_512, "conv3": 831_744},
    "mlp": {"stem": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_stages_have_the_known_parameters(name: str) -> None:
    assert list(count_parameters(name, 32).items()) == list(PARAMETERS[name].items())


def test_blocks_are_called_as_in_the_papers() -> None:
    def labels(name: str, side: int = 32) -> list[str]:
        spec, side = find_backbone_spec(name, side)
        return [block.label for block in find_blocks(build_backbone(spec, side))]

    repeats = (1, 2, 2, 3, 3, 4, 1)
    of_lite0 = [f"block{n}/{'abcd'[k]}" for n, r in enumerate(repeats, 1) for k in range(r)]
    assert labels("efficientnet-lite0") == ["stem/1", *of_lite0, "block7/top"]
    repeats = (3, 4, 6, 3)
    of_resnet50 = [f"conv{n}/block{k}" for n, r in enumerate(repeats, 2) for k in range(1, r + 1)]
    assert labels("resnet50") == ["stem/1", *of_resnet50]


@pytest.mark.parametrize("name", ["ResNet50", "resnet-50", "MobileNet_V3-Small"])
def test_names_of_keras_are_found_in_any_spelling(name: str) -> None:
    spec, side = find_backbone_spec(name, None)
    assert spec.name == name.lower().replace("-", "").replace("_", "")
    assert side == 224


def test_unknown_names_and_sides_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--backbone resnet51.*resnet50"):
        find_backbone_spec("resnet51", None)
    with pytest.raises(UsageError, match=r"--image-size 31: resnet50"):
        build_backbone(*find_backbone_spec("resnet50", 31))
    with pytest.raises(UsageError, match="--cut conv9"):
        cut_backbone(build_backbone(*find_backbone_spec("resnet8", 32)), "conv9")
