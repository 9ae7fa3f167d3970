"""What holds of every store: it returns what the prefix computes, and computes nothing in vain."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.data.batches import ArrayRows
from fmnist_tf.system import signals
from fmnist_tf.training import features

# Examples write files and start processes, so a busy machine must not fail one.
few = settings(deadline=None, max_examples=6)
some = settings(deadline=None, max_examples=30)

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 784), np.uint8)
N_ROWS, N_SHARDS, SHARD_ROWS, BATCH = 50, 7, 8, 2
SIDE_OF_TWOS = 800
ROW_SHAPE = (3, 2)
SHARD_BYTES = SHARD_ROWS * 12 + 16
ROWS_OF = [range(start, min(start + SHARD_ROWS, N_ROWS)) for start in range(0, 50, SHARD_ROWS)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", SHARD_ROWS)
    monkeypatch.setattr(features, "READ_BYTES", 20)  # a shard is read in several pieces


def corner(batch: np.ndarray) -> np.ndarray:
    """A cheap prefix; 0..255 are exact in bfloat16."""
    return batch[:, 300:306].reshape(-1, *ROW_SHAPE)


EXPECTED = corner(PIXELS).astype(np.float32)


class Stored:
    """An entry in a fresh folder, and how many rows were computed for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows_computed = 0
        self.store = features.FeatureStore(folder / "key", N_ROWS, ROW_SHAPE)

    def fill(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute what is missing, one by one so that rows are counted exactly."""
        first: list[int] = []

        def note(done: int, total: int) -> None:
            first.append(done)
            progress(done, total)

        features.cache_features(
            self.folder, "key", ArrayRows(PIXELS), corner, ROW_SHAPE, SIDE_OF_TWOS,
            progress=note, say=pytest.fail,
        )  # fmt: skip
        self.rows_computed = first[-1] - first[0]

    def shard(self, number: int) -> Path:
        return self.store.shard_path(number)

    def check(self) -> None:
        """It is found, it is right, and there is nothing else in the folder."""
        found = features.read_features(self.folder, "key", N_ROWS, ROW_SHAPE)
        assert found is not None
        rows = np.random.default_rng(1).permutation(N_ROWS)
        np.testing.assert_array_equal(found.take(rows).astype(np.float32), EXPECTED[rows])
        names = {path.name for path in (self.folder / "key").iterdir()}
        assert names == {".lock", *(f"shard-0000{number}.bin" for number in range(N_SHARDS))}


@contextmanager
def fresh() -> Iterator[Stored]:
    with tempfile.TemporaryDirectory() as folder:
        yield Stored(Path(folder))


def test_the_figures_above_are_those_of_the_store() -> None:
    with fresh() as stored:
        assert features.rows_per_batch(SIDE_OF_TWOS) == BATCH
        assert [range(*bounds) for bounds in stored.store.shard_bounds] == ROWS_OF
        stored.fill()
        assert stored.shard(0).stat().st_size == SHARD_BYTES
        stored.check()


Damage = Callable[[Stored], None]
numbers = st.integers(0, N_SHARDS - 1)


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Something that may happen to one shard, or to two."""
    number, at, bit = draw(numbers), draw(st.integers(0, 10_000)), draw(st.integers(0, 7))

    def flip(stored: Stored) -> None:
        content = bytearray(stored.shard(number).read_bytes())
        if content:
            content[at % len(content)] ^= 1 << bit
        stored.shard(number).write_bytes(content)

    def cut(stored: Stored) -> None:
        content = stored.shard(number).read_bytes()
        stored.shard(number).write_bytes(content[: at % (len(content) + 1)])

    def lengthen(stored: Stored) -> None:
        with stored.shard(number).open("ab") as file:
            file.write(bytes(1 + at % 100))

    def swap(stored: Stored) -> None:
        other = at % N_SHARDS
        contents = [stored.shard(i).read_bytes() for i in (number, other)]
        stored.shard(other).write_bytes(contents[0])
        stored.shard(number).write_bytes(contents[1])

    def exchange(stored: Stored) -> None:
        # The same rows as another entry has them: sound there, foreign here.
        features.cache_features(
            stored.folder, "other", ArrayRows(255 - PIXELS), corner, ROW_SHAPE, SIDE_OF_TWOS,
            progress=lambda *_: None, say=pytest.fail,
        )  # fmt: skip
        other = features.FeatureStore(stored.folder / "other", N_ROWS, ROW_SHAPE)
        shutil.copy(other.shard_path(number), stored.shard(number))

    def litter(stored: Stored) -> None:
        (stored.folder / f"key/.shard-{number:05d}.tmp-{at}.bin").write_bytes(bytes(at))

    return draw(st.sampled_from([flip, cut, lengthen, swap, exchange, litter]))


@some
@given(st.lists(damages(), max_size=4), st.sets(numbers, max_size=3))
def test_what_is_damaged_is_computed_again_and_nothing_else(
    harm: list[Damage], lost: set[int]
) -> None:
    with fresh() as stored:
        stored.fill()
        before = [stored.shard(number).read_bytes() for number in range(N_SHARDS)]
        for damage in harm:
            damage(stored)
        for number in lost:
            stored.shard(number).unlink()
        harmed = {
            number
            for number in range(N_SHARDS)
            if number in lost or stored.shard(number).read_bytes() != before[number]
        }
        found = features.read_features(stored.folder, "key", N_ROWS, ROW_SHAPE)
        assert (found is None) == bool(harmed)
        stored.fill()
        assert stored.rows_computed == sum(len(ROWS_OF[number]) for number in harmed)
        stored.check()
        stored.fill()
        assert stored.rows_computed == 0


def test_every_byte_of_a_shard_is_guarded() -> None:
    with fresh() as stored:
        stored.fill()
        content = stored.shard(3).read_bytes()
        for place in range(0, 8 * len(content), 7):
            harmed = bytearray(content)
            harmed[place // 8] ^= 1 << place % 8
            stored.shard(3).write_bytes(harmed)
            assert features.read_features(stored.folder, "key", N_ROWS, ROW_SHAPE) is None
        stored.shard(3).write_bytes(content)
        stored.check()


def test_an_entry_under_another_name_is_not_that_entry() -> None:
    with fresh() as stored:
        stored.fill()
        shutil.move(stored.folder / "key", stored.folder / "other")
        assert features.read_features(stored.folder, "other", N_ROWS, ROW_SHAPE) is None


def whole_shards(rows_written: int) -> int:
    return N_SHARDS if rows_written >= N_ROWS else rows_written // SHARD_ROWS


@some
@given(st.lists(st.integers(0, N_ROWS // BATCH - 1), max_size=4))
def test_stopped_anywhere_any_number_of_times_it_goes_on(batches_until_stop: list[int]) -> None:
    with fresh() as stored:
        kept = 0
        for n_batches in batches_until_stop:
            stop_at = min(kept * SHARD_ROWS + n_batches * BATCH, N_ROWS - 1)

            def stop(done: int, total: int, stop_at: int = stop_at) -> None:
                if done >= stop_at:
                    raise signals.StoppedError(signal.SIGTERM)

            with pytest.raises(signals.StoppedError):
                stored.fill(stop)
            # The batch that reached `stop_at` was in a shard that was not finished yet.
            reached = -(-stop_at // BATCH) * BATCH
            kept = max(kept, (reached - 1) // SHARD_ROWS if reached else 0)
            names = sorted(path.name for path in (stored.folder / "key").iterdir())
            assert names == [".lock", *(f"shard-0000{number}.bin" for number in range(kept))]
        stored.fill()
        assert stored.rows_computed == N_ROWS - kept * SHARD_ROWS
        stored.check()


def in_child(body: Callable[[], None]) -> multiprocessing.Process:
    """Start a process that does this; it must not touch TensorFlow, whose threads do not fork."""
    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


@few
@given(st.lists(st.floats(0, 0.06), min_size=1, max_size=3), st.integers(1, 2))
def test_killed_at_any_moment_it_goes_on(seconds_until_kill: list[float], writers: int) -> None:
    """With one writer or two, each killed outright, and the last one left to finish."""
    with fresh() as stored:

        def slow(batch: np.ndarray) -> np.ndarray:
            time.sleep(0.002)
            return corner(batch)

        def write() -> None:
            features.cache_features(
                stored.folder, "key", ArrayRows(PIXELS), slow, ROW_SHAPE, SIDE_OF_TWOS,
                progress=lambda *_: None, say=lambda line: None,
            )  # fmt: skip

        for seconds in seconds_until_kill:
            processes = [in_child(write) for _ in range(writers)]
            time.sleep(seconds)
            for process in processes:
                process.kill()
                process.join()
        whole = [path for path in (stored.folder / "key").glob("shard-*")]
        for path in whole:
            assert path.stat().st_size in (SHARD_BYTES, len(ROWS_OF[-1]) * 12 + 16)
        stored.fill()
        assert stored.rows_computed == N_ROWS - min(SHARD_ROWS * len(whole), N_ROWS)
        stored.check()


@few
@given(st.integers(0, SHARD_BYTES + 20))
def test_a_disk_that_takes_no_more_costs_nothing_that_is_stored(n_bytes: int) -> None:
    with fresh() as stored:

        def write() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
            with suppress(OSError):
                stored.fill()
                os._exit(0)
            os._exit(74)

        process = in_child(write)
        process.join()
        assert process.exitcode == (0 if n_bytes >= SHARD_BYTES else 74)
        n_whole = N_SHARDS if n_bytes >= SHARD_BYTES else 0
        names = sorted(path.name for path in (stored.folder / "key").iterdir())
        assert names == [".lock", *(f"shard-0000{number}.bin" for number in range(n_whole))]
        stored.fill()
        assert stored.rows_computed == (0 if n_whole else N_ROWS)
        stored.check()


@functools.cache
def toy_prefix():
    from toy import build_toy_spec

    from fmnist_tf.model.classifier import build_classifier, split_classifier

    spec = build_toy_spec()
    classifier = build_classifier(
        spec.build(16), spec, head="gap", units=2, dropout=0.0, n_classes=2, seed=0
    )
    return split_classifier(classifier, spec, "head").prefix


@functools.cache
def toy_key() -> str:
    return features.feature_key(ArrayRows(PIXELS), toy_prefix(), "float32")


@some
@given(st.integers(0, PIXELS.size - 1), st.integers(0, 7))
def test_any_bit_of_any_pixel_changes_the_key(place: int, bit: int) -> None:
    changed = PIXELS.copy()
    changed.flat[place] ^= 1 << bit
    assert features.feature_key(ArrayRows(changed), toy_prefix(), "float32") != toy_key()


@some
@given(st.data())
def test_any_bit_of_any_weight_changes_the_key(data: st.DataObject) -> None:
    weight = data.draw(st.sampled_from(range(len(toy_prefix().weights))))
    variable = toy_prefix().weights[weight]
    before = variable.numpy()
    changed = before.copy()
    place = data.draw(st.integers(0, before.size - 1))
    changed.view(np.uint32).flat[place] ^= 1 << data.draw(st.integers(0, 31))
    toy_key()
    variable.assign(changed)
    try:
        assert features.feature_key(ArrayRows(PIXELS), toy_prefix(), "float32") != toy_key()
    finally:
        variable.assign(before)
    assert features.feature_key(ArrayRows(PIXELS), toy_prefix(), "float32") == toy_key()


@few
@given(st.integers(1, N_ROWS), st.sampled_from(["float32", "bfloat16"]), st.booleans())
def test_what_is_stored_is_what_the_prefix_computes(
    n_rows: int, precision: str, is_stopped: bool
) -> None:
    """The whole way, with a real prefix: stored, found again, the same bits."""
    pixels, prefix = ArrayRows(PIXELS[:n_rows]), toy_prefix()
    compute, shape = features.build_feature_function(prefix, precision), prefix.output_shape[1:]

    def stop_midway(done: int, total: int) -> None:
        if is_stopped and 0 < done >= n_rows // 2:
            raise signals.StoppedError(signal.SIGINT)

    with fresh() as stored:
        key = features.feature_key(pixels, prefix, precision)
        for progress in (stop_midway, lambda done, total: None):
            with suppress(signals.StoppedError):
                features.cache_features(
                    stored.folder, key, pixels, compute, shape, SIDE_OF_TWOS,
                    progress=progress, say=pytest.fail,
                )  # fmt: skip
        store = features.read_features(stored.folder, key, n_rows, shape)
        assert store is not None
        computed = np.asarray(compute(PIXELS[:n_rows]))
        np.testing.assert_array_equal(store.take(np.arange(n_rows)), computed)
