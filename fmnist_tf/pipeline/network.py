"""The network of a run, new or saved: built by this package, with weights read from checked files.

B batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras

from fmnist_tf.errors import UsageError
from fmnist_tf.model.backbones import BackboneSpec, build_backbone, find_backbone_spec
from fmnist_tf.model.blocks import cut_backbone
from fmnist_tf.model.classifier import build_classifier, use_statistics
from fmnist_tf.model.phases import TrainablePlan, apply_plan, find_kept_block, plan_phase
from fmnist_tf.model.precision import choose_precision
from fmnist_tf.model.weights import WeightsSource, read_backbone
from fmnist_tf.pipeline.saved_run import MODEL, SavedRun, find_checkpoint, find_run, read_saved_run
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.training.checkpoint import Checkpoint
from fmnist_tf.training.engine import choose_engine
from fmnist_tf.training.loop import changing_variables


@dataclass(frozen=True)
class Network:
    """A classifier whose phase is applied.

    Attributes:
        classifier: (B, 28, 28) uint8 -> (B, K) float32 probabilities.
        image_size: side of the images that the backbone sees, in pixels.
        plan: which weights train.
        weights: where the backbone's initial weights came from.
        precision: compute dtype while training, and the reason for it.
        engine: computes the backbone features; see `engine.choose_engine`.
        parent: the frozen run whose weights it starts from, or None.
        kept: the label of the block whose input the frozen phase keeps for finetune, or None.
    """

    classifier: keras.Model
    image_size: int
    plan: TrainablePlan
    weights: WeightsSource
    precision: tuple[str, str]
    engine: str
    parent: SavedRun | None
    kept: str | None


def build_network(
    config: RunConfig,
    n_classes: int,
    parent: SavedRun | None,
    name: str = "classifier",
    engine: str | None = None,
) -> Network:
    """Build the classifier, load its weights, and apply the phase's plan.

    Args:
        config: complete.
        n_classes: K.
        parent: the frozen run whose weights a finetune run starts from.
        name: of the Keras model.
        engine: that computed the features so far, if the run is resumed; else the parent's counts.

    Raises:
        UsageError: no such backbone or stage, the image size does not fit, or the weights cannot
            be had.
    """
    spec, image_size = find_backbone_spec(config.backbone, config.side)
    precision = choose_precision(config.precision)
    if engine is None and parent is not None:
        engine = parent.provenance["engine"]
    engine = choose_engine(config.engine, engine)
    keras.utils.set_random_seed(config.seed)
    if parent is None:
        choice = "random" if config.phase == "scratch" else config.weights
        backbone, weights = read_backbone(spec, image_size, choice)
    else:
        backbone = build_backbone(spec, image_size)
        weights = WeightsSource(**parent.provenance["weights"])
    classifier = _build_classifier(config, backbone, spec, n_classes, name)
    if parent is not None:
        _load_weights(classifier, parent)
    plan = plan_phase(
        classifier, config.phase, config.unfreeze, train_batch_norm=config.train_batch_norm
    )
    apply_plan(classifier, plan)
    keeps = config.phase == "frozen" and config.keep_for_finetune != "none"
    kept = find_kept_block(classifier, config.keep_for_finetune) if keeps else None
    return Network(classifier, image_size, plan, weights, precision, engine, parent, kept)


def build_saved_model(run: SavedRun) -> keras.Model:
    """Build the run's classifier, (B, 28, 28) uint8 -> (B, K) float32, with its weights.

    Raises:
        UsageError: the model file was changed, or the run's backbone is not known here.
    """
    spec, side = find_backbone_spec(run.config.backbone, run.config.side)
    backbone, n_classes = build_backbone(spec, side), len(run.class_names)
    classifier = _build_classifier(run.config, backbone, spec, n_classes, "classifier")
    _load_weights(classifier, run)
    return classifier


def _build_classifier(
    config: RunConfig, backbone: keras.Model, spec: BackboneSpec, n_classes: int, name: str
) -> keras.Model:
    return build_classifier(
        cut_backbone(backbone, config.cut) if config.cut else backbone,
        spec.value_range,
        head=config.head,
        units=config.units,
        dropout=config.dropout,
        n_classes=n_classes,
        seed=config.seed,
        standardize=config.standardize == "features",
        name=name,
    )


def _load_weights(classifier: keras.Model, run: SavedRun) -> None:
    """Load the run's weights into a classifier of the run's architecture.

    Raises:
        UsageError: the model file is not the one that the run wrote, or of an older version; or
            the weights that a stopped run began with are not there.
    """
    if run.checkpoint is not None:
        classifier.set_weights(_rebuild(run, run.checkpoint).get_weights())
        use_statistics(classifier)
        return
    path = run.directory.file(MODEL)
    with run.directory.reading(MODEL):
        try:
            classifier.load_weights(path)
        except ValueError as error:
            raise UsageError(
                f"{path}: expected the weights of the {run.config.backbone} that there is now, "
                "found another network's, of an older version; train the run again"
            ) from error


def _rebuild(run: SavedRun, checkpoint: Checkpoint) -> keras.Model:
    """Build the network of a stopped run as it began, with what its best epoch changed."""
    config, runs_dir = run.config, run.directory.runs_dir
    parent = read_saved_run(find_run(config.parent, runs_dir)) if config.parent else None
    network = build_network(config, len(run.class_names), parent)
    expected = run.provenance["weights"]["sha256"]
    if network.weights.sha256 != expected:
        raise UsageError(
            f"{run.directory.path}: expected the backbone weights that the run began with, SHA-256 "
            f"{expected}, found {network.weights.sha256}"
        )
    best = [variable.value for variable in changing_variables(network.classifier)]
    try:
        checkpoint.restore({"best": best})
    except UsageError:  # a run in training removes all but its newest ones
        newest = find_checkpoint(run.directory)
        if newest.path == checkpoint.path:
            raise
        newest.restore({"best": best})
    return network.classifier
