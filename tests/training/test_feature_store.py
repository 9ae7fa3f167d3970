"""Stored features come back bit for bit, whatever happened to their files or to the process."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.data.batches import ArrayRows, flip_rows
from fmnist_tf.data.images import JoinedRows
from fmnist_tf.system import signals
from fmnist_tf.training import feature_store, features
from fmnist_tf.training.feature_store import FeatureStore, fits_on_disk
from fmnist_tf.training.features import cache_features

N_ROWS, SHARD_ROWS, BATCH, ROW_SHAPE = 26, 8, 2, (3, 2)
N_SHARDS = 4
PIXELS = np.random.default_rng(0).integers(0, 256, (N_ROWS, 784), np.uint8)
SHARD_BYTES = SHARD_ROWS * 12 + 16
MEMORY_DISK = Path("/dev/shm")  # many small files with fsync: fast where there is one

# Examples write files and start processes, so a busy machine must not fail one.
few = settings(deadline=None, max_examples=6)
some = settings(deadline=None, max_examples=40)


def corner(batch: np.ndarray) -> np.ndarray:
    """A cheap feature extractor: 0..255 are exact in bfloat16."""
    return batch[:, 300:306].reshape(-1, *ROW_SHAPE)


EXPECTED = corner(PIXELS).astype(np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "release_memory", lambda: None)  # takes 0.2 s
    monkeypatch.setattr(feature_store, "READ_BYTES", 20)  # a shard is read in several pieces


class Entry:
    """An entry in a folder of its own; `fill` counts the rows it computes."""

    def __init__(self, folder: Path, key: str = "key") -> None:
        self.store = FeatureStore(folder / key, N_ROWS, ROW_SHAPE, SHARD_ROWS)
        self.path = self.store.path
        self.rows_computed = 0

    def fill(
        self,
        compute: Callable[[np.ndarray], np.ndarray] = corner,
        progress: Callable[[int, int], None] = lambda done, total: None,
        say: Callable[[str], None] = pytest.fail,
        pixels: np.ndarray = PIXELS,
    ) -> None:
        seen: list[int] = []

        def note(done: int, total: int) -> None:
            seen.append(done)
            progress(done, total)

        source = ArrayRows(pixels)
        cache_features([self.store], source, compute, batch_size=BATCH, progress=note, say=say)
        self.rows_computed = seen[-1] - seen[0]

    def shard(self, number: int) -> Path:
        return self.store.shard_path(number)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())

    def check(self) -> None:
        """It is complete and right, and there is nothing else in the folder."""
        found = FeatureStore(self.path, N_ROWS, ROW_SHAPE, SHARD_ROWS)
        assert found.is_complete()
        rows = np.random.default_rng(1).permutation(N_ROWS)
        assert found.take(rows).dtype == found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found.take(rows).astype(np.float32), EXPECTED[rows])
        assert self.files == files_of(N_SHARDS)


def files_of(n_shards: int) -> list[str]:
    return [".lock", *(f"shard-{number:05d}.bin" for number in range(n_shards))]


@contextlib.contextmanager
def new_entry() -> Iterator[Entry]:
    where = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Entry(Path(folder))


@pytest.fixture
def entry() -> Iterator[Entry]:
    with new_entry() as made:
        yield made


@pytest.mark.parametrize("lost", [{0: [1, 3], 1: []}, {0: [2], 1: [0, 2]}, {0: [], 1: [3]}])
def test_one_pass_fills_two_entries_and_what_is_missing_of_either(
    tmp_path: Path, lost: dict[int, list[int]]
) -> None:
    def both(batch: np.ndarray) -> list[np.ndarray]:
        return [corner(batch), batch[:, :1], batch]  # the third is of nobody

    stores = [
        FeatureStore(tmp_path / key, N_ROWS, shape, SHARD_ROWS)
        for key, shape in (("b", ROW_SHAPE), ("a", (1,)))
    ]
    computed = []

    def fill() -> None:
        options = {"batch_size": BATCH, "say": pytest.fail}
        cache_features(
            stores, ArrayRows(PIXELS), both, progress=lambda *done: computed.append(done), **options
        )

    fill()
    rows = np.arange(N_ROWS)
    for _ in range(2):
        np.testing.assert_array_equal(stores[0].take(rows).astype(np.float32), EXPECTED)
        np.testing.assert_array_equal(stores[1].take(rows).astype(np.float32), PIXELS[:, :1])
        computed.clear()
        for store, numbers in zip(stores, lost.values(), strict=True):
            for number in numbers:
                store.shard_path(number).unlink()
        fill()
        n_lost = sum(len(stores[0].shards[n]) for n in {*lost[0], *lost[1]})
        assert computed[-1][0] - computed[0][0] == n_lost
        assert all(store.is_complete() for store in stores)


numbers = st.integers(0, N_SHARDS - 1)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[Entry], None]:
    """Damage to one shard or to two."""
    number, at, bit = draw(numbers), draw(st.integers(0, 10_000)), draw(st.integers(0, 7))

    def flip_a_bit(entry: Entry) -> None:
        content = bytearray(entry.shard(number).read_bytes())
        if content:
            content[at % len(content)] ^= 1 << bit
        entry.shard(number).write_bytes(content)

    def truncate(entry: Entry) -> None:
        content = entry.shard(number).read_bytes()
        entry.shard(number).write_bytes(content[: at % (len(content) + 1)])

    def extend(entry: Entry) -> None:
        with entry.shard(number).open("ab") as file:
            file.write(bytes(1 + at % 100))

    def swap(entry: Entry) -> None:
        one, other = entry.shard(number), entry.shard(at % N_SHARDS)
        contents = one.read_bytes(), other.read_bytes()
        other.write_bytes(contents[0])
        one.write_bytes(contents[1])

    def take_from_another_entry(entry: Entry) -> None:
        other = Entry(entry.path.parent, "other")
        other.fill(pixels=255 - PIXELS)
        shutil.copy(other.shard(number), entry.shard(number))

    def leave_a_temporary_file(entry: Entry) -> None:
        def write_and_die() -> None:
            with FeatureStore(entry.path, N_ROWS, ROW_SHAPE, SHARD_ROWS).writing_shard(number):
                os._exit(0)

        kept = entry.shard(number).read_bytes() if entry.shard(number).exists() else None
        in_child(write_and_die).join()
        if kept is not None:  # what is written anew is removed first
            entry.shard(number).write_bytes(kept)

    return draw(
        st.sampled_from(
            [flip_a_bit, truncate, extend, swap, take_from_another_entry, leave_a_temporary_file]
        )
    )


@some
@given(st.lists(damages(), max_size=4), st.sets(numbers, max_size=3))
def test_damaged_shards_are_computed_again_and_no_others(
    harm: list[Callable[[Entry], None]], lost: set[int]
) -> None:
    with new_entry() as entry:
        entry.fill()
        assert entry.rows_computed == N_ROWS
        before = [entry.shard(number).read_bytes() for number in range(N_SHARDS)]
        for damage in harm:
            damage(entry)
        for number in lost:
            entry.shard(number).unlink()
        harmed = [
            number
            for number in range(N_SHARDS)
            if number in lost or entry.shard(number).read_bytes() != before[number]
        ]
        assert entry.store.find_invalid_shards() == harmed
        assert entry.store.is_complete() == (not harmed)
        entry.fill()
        assert entry.rows_computed == sum(len(entry.store.shards[n]) for n in harmed)
        entry.check()


def test_every_byte_of_a_shard_is_checked(entry: Entry) -> None:
    entry.fill()
    content = entry.shard(1).read_bytes()
    for place in range(0, 8 * len(content), 7):
        harmed = bytearray(content)
        harmed[place // 8] ^= 1 << place % 8
        entry.shard(1).write_bytes(harmed)
        assert entry.store.find_invalid_shards() == [1]


@some
@given(st.lists(st.integers(0, N_ROWS // BATCH - 1), max_size=4))
def test_it_continues_after_any_number_of_interruptions(batches_until_stop: list[int]) -> None:
    with new_entry() as entry:
        kept = 0
        for n_batches in batches_until_stop:
            stop_at = min(kept * SHARD_ROWS + n_batches * BATCH, N_ROWS - 1)

            def stop(done: int, total: int, stop_at: int = stop_at) -> None:
                if done >= stop_at:
                    raise signals.StoppedError(signal.SIGTERM)

            with pytest.raises(signals.StoppedError):
                entry.fill(progress=stop)
            # The batch that reached `stop_at` is in a shard that is not finished.
            reached = -(-stop_at // BATCH) * BATCH
            kept = max(kept, (reached - 1) // SHARD_ROWS if reached else 0)
            assert entry.files == files_of(kept)
        entry.fill()
        assert entry.rows_computed == N_ROWS - kept * SHARD_ROWS
        entry.check()


def in_child(body: Callable[[], None]) -> multiprocessing.Process:
    """Run this in a process that must not touch TensorFlow, whose threads do not fork."""
    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


@few
@given(st.lists(st.floats(0, 0.06), min_size=1, max_size=3), st.integers(1, 2))
def test_it_continues_after_a_kill_at_any_moment(
    seconds_until_kill: list[float], n_processes: int
) -> None:
    with new_entry() as entry:

        def slow(batch: np.ndarray) -> np.ndarray:
            time.sleep(0.004)
            return corner(batch)

        def write() -> None:
            entry.fill(slow, say=lambda line: None)

        for seconds in seconds_until_kill:
            processes = [in_child(write) for _ in range(n_processes)]
            time.sleep(seconds)
            for process in processes:
                process.kill()
                process.join()
        entry.path.mkdir(exist_ok=True)
        written = [int(name[6:11]) for name in entry.files if name.startswith("shard-")]
        entry.fill()
        kept = sum(len(entry.store.shards[number]) for number in written)
        assert entry.rows_computed == N_ROWS - kept
        entry.check()


@pytest.mark.parametrize("n_processes", [2, 5])
def test_processes_share_the_shards(entry: Entry, n_processes: int) -> None:
    computed = multiprocessing.get_context("fork").Array("i", N_ROWS)

    def work() -> None:
        def slow(batch: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            for row in np.flatnonzero((PIXELS[:, None] == batch).all(axis=2).any(axis=1)):
                computed[row] += 1
            return corner(batch)

        entry.fill(slow, say=lambda line: None)

    processes = [in_child(work) for _ in range(n_processes)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * n_processes
    assert list(computed) == [1] * N_ROWS
    entry.check()


def test_the_shards_of_a_process_that_dies_are_taken_over(entry: Entry) -> None:
    began, said = multiprocessing.get_context("fork").Event(), []

    def work() -> None:
        def hang(batch: np.ndarray) -> np.ndarray:
            began.set()
            time.sleep(60)
            return batch

        entry.fill(hang)

    process = in_child(work)
    began.wait()

    def let_die(line: str) -> None:
        said.append(line)
        assert entry.files[-1] == "shard-00003.bin"  # all but those that the other has claimed
        process.kill()
        process.join()

    entry.fill(say=let_die)
    assert len(said) == 1
    entry.check()


# A signal may come between the opening of a shard and the name that would close it.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_signal_stops_the_computation_at_once(entry: Entry) -> None:
    computed = []

    def slow(batch: np.ndarray) -> np.ndarray:
        if len(computed) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        computed.append(len(batch))
        time.sleep(0.02)
        return corner(batch)

    with pytest.raises(signals.StoppedError), signals.listening():
        entry.fill(slow)
    assert len(computed) <= 6 + 1 + feature_store.N_THREADS
    assert entry.files == files_of(1)


def test_a_signal_that_python_dropped_stops_it_too(entry: Entry) -> None:
    with signals.listening():
        with contextlib.suppress(signals.StoppedError):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.StoppedError):
            entry.fill()
    assert entry.files == files_of(0)


def test_a_full_disk_keeps_the_stored_shards(entry: Entry) -> None:
    entry.fill()
    for number in (2, 3):
        entry.shard(number).unlink()

    def write_to_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD_BYTES - 1, SHARD_BYTES - 1))
        with pytest.raises(OSError, match="16 of 26 images") as caught:
            entry.fill()
        assert caught.value.errno == errno.EFBIG
        os._exit(0)

    process = in_child(write_to_a_full_disk)
    process.join()
    assert process.exitcode == 0
    assert entry.files == files_of(2)


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1100 + feature_store.FREE_BYTES})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    one, other = (FeatureStore(tmp_path / key, 100, (5,)) for key in "ab")
    assert one.n_bytes == 1000
    assert not fits_on_disk([one])
    one.path.mkdir()
    one.shard_path(0).write_bytes(bytes(500))
    assert fits_on_disk([one])
    assert not fits_on_disk([one, other])
    assert feature_store.bytes_on_disk(tmp_path) == feature_store.bytes_on_disk(one.path) == 500


def test_the_first_batch_is_computed_alone_and_then_two_at_once(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    two = threading.Barrier(2, timeout=30)
    monkeypatch.setattr(features, "release_memory", lambda: events.append("release"))

    def note(batch: np.ndarray) -> np.ndarray:
        if "release" in events:
            two.wait()
        time.sleep(0.002 * (len(events) % 3))  # not finished in order
        events.append("end")
        return corner(batch)

    entry.fill(note)
    assert events[:2] == ["end", "release"]
    assert events.count("release") == 1
    entry.check()


def test_a_store_of_more_shards_than_a_process_can_map_is_read(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "MAX_MAPPED", 2)
    entry.fill()
    rows = np.random.default_rng(0).permutation(N_ROWS)
    np.testing.assert_array_equal(entry.store.take(rows).astype(np.float32), EXPECTED[rows])
    assert Path("/proc/self/maps").read_text().count(str(entry.path)) == 2


def test_computing_does_not_run_ahead_of_writing(entry: Entry) -> None:
    started = 0
    ahead = []

    def count(batch: np.ndarray) -> np.ndarray:
        nonlocal started
        started += len(batch)
        return corner(batch)

    def slow_writer(done: int, total: int) -> None:
        time.sleep(0.01)
        ahead.append(started - done)

    entry.fill(count, slow_writer)
    assert max(ahead) <= BATCH * feature_store.N_THREADS


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    n_rows = 50_000
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(n_rows, 784))
    view = flip_rows(ArrayRows(JoinedRows([pixels], np.arange(n_rows)), "digest"))
    store = FeatureStore(tmp_path / view.digest, n_rows, (2,))
    tracemalloc.start()
    try:
        cache_features(
            [store], view, lambda batch: batch[:, :2],
            batch_size=128, progress=lambda *_: None, say=print,
        )  # fmt: skip
        assert store.is_complete()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6  # all pixels are 39 MB
