"""`--cut auto`: a linear probe on the output of every stage decides where the backbone ends.

Only training rows are used. How well linear probes predict transfer: Kornblith et al. 2019,
"Do Better ImageNet Models Transfer Better?" (arXiv:1805.08974).
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from fmnist_tf.cli.terminal import progress_bar, say
from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.splits import subset_rows
from fmnist_tf.errors import UsageError
from fmnist_tf.model.backbones import BackboneSpec, find_backbone_spec
from fmnist_tf.model.blocks import block_output, find_blocks
from fmnist_tf.model.precision import choose_precision
from fmnist_tf.model.preprocessing import preprocess
from fmnist_tf.model.weights import read_backbone
from fmnist_tf.pipeline.prepare import RunData
from fmnist_tf.reporting.plots import write_cuts
from fmnist_tf.reporting.style import Heading
from fmnist_tf.results.rundir import CUTS, RunDir
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.system import signals
from fmnist_tf.training.features import build_feature_function, rows_per_batch

N_ROWS = 3000
MAX_FEATURES = 2**17  # of an image; ResNet50 at 224 pixels has 100,352
N_FOLDS = 5
_ALPHAS = (0.03, 0.3)
_N_TIMED = 3  # batches


@dataclass(frozen=True)
class Candidate:
    """A place to cut, and what was measured there.

    Attributes:
        image_size: side of the backbone's input, in pixels.
        cut: the stage after which the backbone ends.
        n_features: of an image, as the head gets them.
        stored_bytes: of an image's features in bfloat16.
        seconds_per_1000: to compute the features of 1,000 images, after warm-up.
        probe_accuracy: fraction of training rows that a linear classifier predicts correctly, each
            left out of its training.
    """

    image_size: int
    cut: str
    n_features: int
    stored_bytes: int
    seconds_per_1000: float
    probe_accuracy: float


@dataclass(frozen=True)
class CutSearch:
    """All candidates, and the one that was chosen."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate

    def write(self, directory: RunDir, heading: Heading) -> None:
        """Write cuts.csv and cuts.png."""
        cuts = pd.DataFrame(self.candidates)
        cuts["chosen"] = [int(candidate == self.chosen) for candidate in self.candidates]
        directory.write_text(CUTS, cuts.to_csv(index=False, lineterminator="\n"))
        with directory.writing("cuts.png") as path:
            write_cuts(path, heading, cuts)


def search_cut(config: RunConfig, data: RunData) -> CutSearch:
    """Probe every stage at every image size on training rows, print the table, and choose.

    The best probe within the time budget is chosen; of equals the first, which is cheaper.

    Raises:
        UsageError: no candidate keeps to the time budget; the backbone is unknown, cannot be built
            at a size, or its weights cannot be had.
    """
    train, rows = data.dataset.train, data.splits.train
    rows = rows[subset_rows(train.labels[rows], N_ROWS, config.seed)]
    pixels = np.ascontiguousarray(train.pixels[rows]).reshape(len(rows), -1)
    precision, _ = choose_precision(config.precision)
    n_images = len(data.splits.train) + len(data.splits.val) + len(data.dataset.test.labels)
    sizes = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,)
    candidates: list[Candidate] = []
    for size in sizes:
        spec, side = find_backbone_spec(config.backbone, size)
        with progress_bar(f"cut search at {side} pixels", "stage") as show:
            candidates += _probe(spec, side, config, pixels, train.labels[rows], precision, show)
        keras.backend.clear_session()
    say("cut search: size  cut       features  bytes/image  s/1,000 images  probe accuracy")
    for c in candidates:
        say(
            f"            {c.image_size:4}  {c.cut:8}  {c.n_features:8,}  {c.stored_bytes:11,}  "
            f"{c.seconds_per_1000:14.2f}  {c.probe_accuracy:14.4f}"
        )
    budget = config.time_budget or np.inf
    affordable = [c for c in candidates if c.seconds_per_1000 * n_images / 1000 <= budget]
    if not affordable:
        fastest = min((c.seconds_per_1000 for c in candidates), default=np.inf) * n_images / 1000
        raise UsageError(
            f"--time-budget {budget:g}: the features of {n_images:,} images take {fastest:.0f} s "
            "at the cheapest cut; give more time, or a smaller --image-size"
        )
    chosen = max(affordable, key=lambda candidate: candidate.probe_accuracy)
    say(f"cut search: {chosen.cut} at {chosen.image_size} pixels is chosen")
    return CutSearch(tuple(candidates), chosen)


def _probe(
    spec: BackboneSpec,
    side: int,
    config: RunConfig,
    pixels: np.ndarray,
    labels: np.ndarray,
    precision: str,
    show: Callable[[int, int], None],
) -> list[Candidate]:
    """Return the candidates of one size; the features of all stages are computed in one pass."""
    backbone, _ = read_backbone(spec, side, config.weights)
    last = {block.stage: block for block in find_blocks(backbone)}
    inputs = keras.Input((IMAGE_SIZE, IMAGE_SIZE), dtype="uint8")
    images = preprocess(inputs, spec.value_range, side)
    pools = config.head == "gap"
    maps = {
        stage: keras.Model(backbone.input, block_output(backbone, block))(images)
        for stage, block in last.items()
    }
    kept = {
        stage: tensor
        for stage, tensor in maps.items()
        if (tensor.shape[-1] if pools else np.prod(tensor.shape[1:])) <= MAX_FEATURES
    }
    if not kept:
        raise UsageError(f"--image-size {side}: no stage of {spec.name} has few enough features")
    size = rows_per_batch(side)
    network = keras.Model(inputs, list(kept.values()))
    compute = build_feature_function(network, precision, pools=pools)
    features = _compute_features(compute, pixels, size)
    candidates = []
    for (stage, tensor), of_stage in zip(kept.items(), features, strict=True):
        compute = build_feature_function(keras.Model(inputs, tensor), precision, pools=pools)
        # The first call builds the graph.
        _, *times = timeit.repeat(partial(compute, pixels[:size]), number=1, repeat=1 + _N_TIMED)
        seconds = 1000 * sum(times) / (_N_TIMED * len(pixels[:size]))
        n_features = of_stage.shape[1]
        accuracy = probe(of_stage, labels)
        candidates.append(Candidate(side, stage, n_features, 2 * n_features, seconds, accuracy))
        show(len(candidates), len(kept))
    return candidates


def _compute_features(
    compute: Callable[[np.ndarray], list[tf.Tensor]], pixels: np.ndarray, batch_size: int
) -> list[np.ndarray]:
    """Return (N, F) bfloat16 of each output of `compute`."""
    parts = []
    for first in range(0, len(pixels), batch_size):
        signals.check()
        outputs = tf.nest.flatten(compute(pixels[first : first + batch_size]))
        parts.append([x.numpy().reshape(len(x), -1) for x in outputs])
    return [np.concatenate(of_stage) for of_stage in zip(*parts, strict=True)]


def probe(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the cross-validated accuracy, 0..1, of a ridge classifier on standardized features.

    In its dual form, so that a hundred thousand features (N, F) cost one matrix product.

    Raises:
        UsageError: a class has one row.
    """
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.preprocessing import StandardScaler

    x = StandardScaler(copy=False).fit_transform(features.astype(np.float32))
    kernel = (x @ x.T / x.shape[1]).astype(np.float64)
    targets = np.eye(labels.max() + 1)[labels]
    fewest = np.unique_counts(labels).counts.min()
    if fewest < 2:
        raise UsageError("--cut auto: expected at least two training rows in each class, found one")
    splitter = StratifiedKFold(min(N_FOLDS, fewest), shuffle=True, random_state=0)
    folds = list(splitter.split(x, labels))
    accuracies = []
    for alpha in _ALPHAS:
        ridge = KernelRidge(alpha=alpha, kernel="precomputed")
        scores = cross_val_predict(ridge, kernel, targets, cv=folds)
        accuracies.append(np.mean(scores.argmax(axis=1) == labels))
    return float(max(accuracies))
