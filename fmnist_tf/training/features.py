"""Computing and caching backbone features: the output of the frozen layers.

Runs that need the same features share them. `feature_key` names them by all that can change a bit:
pixels, layers, weights, precision, versions and processor.

Shape letters: N rows, B batch, H W C feature map.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import chain, islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_tf.data import IMAGE_SIZE, N_PIXELS
from fmnist_tf.data.batches import RowSource
from fmnist_tf.model.folding import fold_model
from fmnist_tf.system import signals
from fmnist_tf.system.cpu import read_cpu_features, usable_cpus
from fmnist_tf.system.files import remove_leftovers, sharing
from fmnist_tf.system.memory import release_memory
from fmnist_tf.training import cluster
from fmnist_tf.training.feature_store import (
    FEATURE_DTYPE,
    FeatureStore,
    map_ahead,
)

# Raise it with every change of the files, of the batches, or of what folding or pooling computes.
FORMAT = 7
_POLL_SECONDS = 0.2

# These names in /proc/cpuinfo decide which kernels compute.
_VECTOR_UNITS = ("amx", "asimd", "avx", "bf16", "fma", "sve")
_KERNEL_SETTINGS = (
    "DNNL_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TF_ENABLE_ONEDNN_OPTS",
)


def rows_per_batch(side: int) -> int:
    """Return the rows that one thread computes at once, a power of two.

    They have the pixels of 32 images at 224 x 224, whose activations fit in memory twice. More than
    128 small images are not faster.
    """
    return 1 << max(min(128, 32 * 224**2 // side**2).bit_length() - 1, 0)


def build_feature_function(
    feature_extractor: keras.Model, precision: str, *, pools: bool = False, constant: bool = True
) -> Callable[[Any], Any]:
    """Return the folded feature extractor as one graph: (B, 784) uint8 -> (B, *shape) bfloat16.

    It rounds as the store does, so that cached and computed features are equal.

    Args:
        feature_extractor: (B, 28, 28) uint8 -> features; with several outputs, so has the result.
        precision: float32 or bfloat16, the compute dtype.
        pools: return `average_feature_maps` of the output.
        constant: see `fold_model`; False for few batches.
    """
    folded = fold_model(feature_extractor, precision, frozen=True, constant=constant)

    @tf.function(input_signature=[tf.TensorSpec((None, N_PIXELS), tf.uint8)], autograph=False)
    def compute(pixels: tf.Tensor) -> Any:
        n_rows = tf.shape(pixels)[0]
        # oneDNN has other kernels for a single image, which round differently.
        filled = tf.pad(pixels, [[0, tf.maximum(2 - n_rows, 0)], [0, 0]])
        images = tf.reshape(filled, (-1, IMAGE_SIZE, IMAGE_SIZE))
        outputs = folded(images, training=False)
        return tf.nest.map_structure(lambda x: tf.cast(x[:n_rows], tf.bfloat16), outputs)

    # Outside of the graph, as for cached maps: fused into it, it might round differently.
    if not pools:
        return compute
    return lambda pixels: tf.nest.map_structure(average_feature_maps, compute(pixels))


def average_feature_maps(maps: Any) -> tf.Tensor:
    """Return the mean over H and W, (B, H, W, C) bfloat16 -> (B, C) bfloat16."""
    return tf.cast(tf.reduce_mean(tf.cast(maps, tf.float32), axis=(1, 2)), tf.bfloat16)


def feature_key(
    pixels: RowSource, feature_extractor: keras.Model, precision: str, engine: str = "tensorflow"
) -> str:
    """Return the SHA-256 that names the features of these pixels.

    It covers the pixels' digest, the layers with their settings, connections and weights, the
    precision, the engine, `FORMAT`, the versions of Keras and TensorFlow, the processor and the
    environment variables that choose its kernels.
    """
    head = {
        "format": FORMAT,
        "precision": precision,
        "engine": engine,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "processor": describe_processor(),
        "rows": [pixels.n_rows, *pixels.row_shape, pixels.digest],
        "graph": _describe_graph(feature_extractor.get_config()),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, default=str).encode())
    for weight in feature_extractor.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()


def _describe_graph(config: dict[str, Any]) -> list[Any]:
    """Return each layer's class, settings and inputs, and the outputs of the model.

    Layers are numbered: Keras' default names depend on what the process built before.
    """
    place_of = {entry["config"]["name"]: place for place, entry in enumerate(config["layers"])}

    def without_names(value: Any) -> Any:
        match value:
            case {"keras_history": tensor}:
                return without_names(tensor)
            case dict():
                return {key: without_names(part) for key, part in value.items()}
            case [str(name), int(call), int(output)]:
                return place_of.get(name, name), call, output
            case list() | tuple():
                return [without_names(part) for part in value]
        return value

    described: list[Any] = [without_names(config.get("output_layers"))]
    for entry in config["layers"]:
        settings = entry["config"]
        if "layers" in settings:
            settings = _describe_graph(settings)
        else:
            settings = {k: v for k, v in settings.items() if k not in ("name", "trainable")}
        inputs = without_names(entry.get("inbound_nodes"))
        described.append([entry["class_name"], settings, inputs])
    return described


def describe_processor() -> list[Any]:
    """Return what decides which kernels TensorFlow computes with."""
    settings = [os.environ.get(name) for name in _KERNEL_SETTINGS]
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        is_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
        return [details.get("device_name"), is_tf32, *settings]
    units = sorted(name for name in read_cpu_features() if name.startswith(_VECTOR_UNITS))
    n_threads = tf.config.threading.get_intra_op_parallelism_threads() or len(usable_cpus())
    return [platform.machine(), units, n_threads, *settings]


def cache_features(
    stores: Sequence[FeatureStore],
    source: RowSource,
    compute: Callable[[Any], Any],
    *,
    batch_size: int,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> None:
    """Compute the shards that are missing in one of `stores`, in one pass for all of them.

    Several processes share the work, workers of a cluster or not: each shard is computed by the
    one that claims it first, and again by another if that one ends before. Which rows and batches
    make a shard does not depend on that. Returns when no shard is missing. Memory holds three
    batches, however many rows there are. An interruption or a full disk costs the shard in work.

    Args:
        stores: of `feature_key`'s keys, N rows each, with shards and parts of the same rows.
        source: N rows, pixels or cached feature maps.
        compute: (B, ...) rows -> (B, *row_shape) of the first store, or a list that begins with
            one such output for each store; called from several threads.
        batch_size: B, a power of two.
        progress: called with the rows that are stored or computed, and those of the part.
        say: called if this process waits for shards of others.

    Raises:
        OSError: the disk does not take the features; the message says how many are stored.
        StoppedError: a signal stops this process.
    """
    shards, n_rows = stores[0].shards, stores[0].n_kept
    step = min(batch_size, stores[0].rows_per_shard)

    def compute_rows(rows: np.ndarray) -> list[np.ndarray]:
        outputs = tf.nest.flatten(compute(source.take(rows)))
        return [np.ascontiguousarray(output, FEATURE_DTYPE) for output in outputs[: len(stores)]]

    def compute_first(rows: np.ndarray) -> list[np.ndarray]:
        outputs = compute_rows(rows)
        release_memory()
        return outputs

    def is_missing(number: int) -> bool:
        return not all(store.is_valid(number) for store in stores)

    with ExitStack() as held:
        claims = []
        for store in sorted(stores, key=lambda store: store.path):  # one order: no deadlock
            store.path.mkdir(parents=True, exist_ok=True)
            claims.append(held.enter_context(sharing(store.path)))
            remove_leftovers(store.path)
        missing = sorted({number for store in stores for number in store.find_invalid_shards()})
        workers, claimed, is_told = cluster.current(), deque[int](), False

        def claim_batches() -> Iterator[np.ndarray]:
            # Each worker begins with its own shards and goes on with what nobody has claimed.
            for number in sorted(missing, key=lambda n: (n - workers.index) % workers.n_workers):
                if all(claim(number) for claim in claims) and is_missing(number):
                    claimed.append(number)
                    for first in shards[number][::step]:
                        yield np.arange(first, min(first + step, shards[number].stop))

        # TensorFlow optimizes a graph in its first call and copies its constants several times for
        # that; two first calls at once would both do so (runs/LOG.md).
        to_compute = claim_batches()
        computed: Iterator[list[np.ndarray]]
        computed = map_ahead(compute_first, islice(to_compute, 1))
        while True:
            stored = done = n_rows - sum(len(shards[number]) for number in missing)
            progress(done, n_rows)
            with closing(map_ahead(compute_rows, to_compute)) as other_batches:
                computed = chain(computed, other_batches)
                for first_outputs in computed:
                    number = claimed.popleft()
                    n_others = math.ceil(len(shards[number]) / step) - 1
                    try:
                        with ExitStack() as files:
                            writers = [files.enter_context(s.writing_shard(number)) for s in stores]
                            for outputs in chain([first_outputs], islice(computed, n_others)):
                                for write, output in zip(writers, outputs, strict=True):
                                    write(output)
                                done += len(outputs[0])
                                progress(done, n_rows)
                    except OSError as error:
                        raise OSError(
                            error.errno,
                            f"{error.strerror or error}; the features of {stored:,} of "
                            f"{n_rows:,} images are stored and will be used by the next run. "
                            "--cache DIR names another disk",
                            str(error.filename or stores[0].shard_path(number)),
                        ) from error
                    stored += len(shards[number])
            missing = [number for number in missing if is_missing(number)]
            if not missing:
                break
            if not is_told:
                is_told = True
                say(f"backbone features: others compute {len(missing)} parts of {stores[0].path}")
            time.sleep(_POLL_SECONDS)
            signals.check()
            to_compute, computed = claim_batches(), iter(())
