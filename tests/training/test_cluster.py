"""Workers are found, share every batch, end alike, and end together when one is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toyrun import WORDS, draw, write_csv
from yardstick import hash_run

from benchmarks.scaling import find_addresses
from fmnist_tf.data.batches import ArrayRows, StackedRows, order_rows
from fmnist_tf.errors import UsageError
from fmnist_tf.training.cluster import Cluster
from fmnist_tf.training.feature_store import FEATURE_DTYPE, FeatureStore
from fmnist_tf.training.sharing import Sharing

TESTS = Path(__file__).parents[1]
_PATH = [str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(_PATH)}
TOY = [sys.executable, str(TESTS / "toy.py")]
NAMES = ("bag", "hat", "shoe")
# Without dropout the number of workers changes nothing but rounding; Adam would turn that of
# a bias before BatchNorm, whose gradient is 0, into whole steps.
SCRATCH = [*WORDS, "--data", "train.csv", "--phase", "scratch", "--epochs", "3", "--dropout", "0",
    "--optimizer", "sgd"]  # fmt: skip
LOST = 75


def tf_config(*workers: str, kind: str = "worker", index: int | str = 0, **jobs: list[str]) -> str:
    cluster = {**jobs, **({"worker": workers} if workers else {})}
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_tf_config_names_the_workers_and_the_chief_comes_first() -> None:
    cluster = Cluster.find({"TF_CONFIG": tf_config("a:1", "b:2", index="1")})
    assert (cluster.workers, cluster.index, cluster.is_chief) == (("a:1", "b:2"), 1, False)
    text = tf_config("a:1", "b:2", chief=["c:3"])
    assert Cluster.find({"TF_CONFIG": text}) == Cluster(("c:3", "a:1", "b:2"), 1)
    text = tf_config("a:1", kind="chief", chief=["c:3"])
    assert Cluster.find({"TF_CONFIG": text}).is_chief


@pytest.mark.parametrize("text", ["", "{}", tf_config("a:1"), tf_config(kind="chief")])
def test_one_worker_or_none_is_this_process_alone(text: str) -> None:
    assert Cluster.find({"TF_CONFIG": text}).workers == ()


@pytest.mark.parametrize(
    "text",
    ["x", "[]", '{"cluster": {"worker": ["a:1", "b:2"]}}', tf_config("a:1", "b:2", index=2),
     tf_config("a:1", "b:2", kind="ps", ps=["c:3"]), tf_config("a:1", "a:1"),
     tf_config("a:1", "b:2", index="one"), tf_config("a:1", "b")],
)  # fmt: skip
def test_other_tf_configs_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="TF_CONFIG: expected JSON"):
        Cluster.find({"TF_CONFIG": text})


def test_slurm_numbers_its_tasks_in_the_order_of_its_node_list() -> None:
    step = {
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_NODELIST": "n[9-11]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_JOB_ID": "71234",
    }
    cluster = Cluster.find({**step, "SLURM_PROCID": "2"})
    expected = ("n9:16234", "n9:16235", "n10:16234", "n10:16235", "n11:16234")
    assert cluster == Cluster(expected, 2)
    assert Cluster.find({**step, "SLURM_STEP_NUM_TASKS": "1"}) == Cluster()


@pytest.mark.parametrize(
    ("n_rows", "n_workers", "batch_size"),
    [(7, 3, 4), (6, 3, 4), (1, 2, 4), (4, 2, 4), (60_000, 4, 256)],
)
def test_workers_share_the_rows_of_each_batch(n_rows: int, n_workers: int, batch_size: int) -> None:
    numbers = np.arange(n_rows)
    source, order = ArrayRows(numbers[:, None]), order_rows(numbers, 0, 1)

    def read(cluster: Cluster) -> list[list[int]]:
        batches = Sharing(cluster).read(source, numbers, order, batch_size)
        return [x[:, 0].numpy().tolist() for _, x, _ in batches]

    workers, strategy = tuple("abcd"[:n_workers]), SimpleNamespace(num_replicas_in_sync=n_workers)
    shares = [read(Cluster(workers, index, strategy)) for index in range(n_workers)]
    whole = read(Cluster())
    assert sorted(row for batch in whole for row in batch) == numbers.tolist()
    for batch, *parts in zip(whole, *shares, strict=True):
        if len(batch) < n_workers:  # too few to share: each has all, and counts its part of them
            assert parts == [batch] * n_workers
            continue
        assert sorted(row for part in parts for row in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Thread(Cluster):
    """A worker that is a thread; it adds up by a barrier."""

    def total(self, values: np.ndarray) -> np.ndarray:
        shared, barrier = self.strategy.given, self.strategy.barrier
        shared[self.index] = values
        barrier.wait(30)
        total = np.sum(list(shared.values()), axis=0, dtype=values.dtype)
        barrier.wait(30)
        return total


@pytest.mark.parametrize(("n_rows", "n_workers"), [(20, 2), (7, 3), (23, 3), (4, 3), (60, 4)])
def test_workers_that_keep_parts_of_the_features_share_each_batch(
    tmp_path: Path, n_rows: int, n_workers: int
) -> None:
    numbers = np.arange(2 * n_rows)
    order = np.random.default_rng(0).permutation(numbers)
    strategy = SimpleNamespace(
        num_replicas_in_sync=n_workers, given={}, barrier=threading.Barrier(n_workers)
    )

    def read(index: int) -> list[tuple[list[int], list[int]]]:
        stores = []
        for view in (0, 1):
            path = tmp_path / f"{index}/{view}"
            path.mkdir(parents=True)
            store = FeatureStore(path, n_rows, (3,), rows_per_shard=2, part=(index, n_workers))
            for number in store.kept_shards:
                rows = np.array(store.shards[number]) + view * n_rows
                with store.writing_shard(number) as write:
                    write(np.repeat(rows, 3).reshape(-1, 3).astype(FEATURE_DTYPE))
            assert store.is_complete()
            stores.append(store)
        cluster = Thread(tuple("abcd"[:n_workers]), index, strategy)
        batches = Sharing(cluster).read(StackedRows(tuple(stores)), numbers, order, 5)
        return [(np.asarray(x)[:, 2].tolist(), np.asarray(y).tolist()) for _, x, y in batches]

    with ThreadPoolExecutor(n_workers) as threads:
        shares = list(threads.map(read, range(n_workers)))
    for first, *parts in zip(range(0, len(order), 5), *shares, strict=True):
        batch = order[first : first + 5].tolist()
        assert all(x == y != [] for x, y in parts)
        if len(batch) < n_workers:
            assert [y for _, y in parts] == [batch] * n_workers
        else:
            assert sorted(row for _, y in parts for row in y) == sorted(batch)


# --- Processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with data."""
    folder = tmp_path_factory.mktemp("workers")
    for name, n_rows in (("train", 61), ("tiny", 12), ("many", 700)):
        write_csv(folder / f"{name}.csv", draw(n_rows, 0), [NAMES[n % 3] for n in range(n_rows)])
    return folder


class Workers:
    """Processes of one run; `log` is the chief's stderr, `logs` are all."""

    def __init__(self, folder: Path, n: int, *words: str) -> None:
        addresses = find_addresses(n)
        self.files = [folder / f"worker-{index}.log" for index in range(n)]
        self.processes = []
        for index, file in enumerate(self.files):
            environment = dict(ENVIRONMENT)
            if n > 1:
                environment["TF_CONFIG"] = tf_config(*addresses, index=index)
            with file.open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [*TOY, *(word.replace("INDEX", str(index)) for word in words)],
                        cwd=folder,
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )

    def kill(self, index: int, number: int, *, after: str) -> float:
        """Send a signal when the chief has printed `after`; return the time."""
        for _ in range(1200):
            if re.search(after, self.files[0].read_text()):
                break
            time.sleep(0.1)
        self.processes[index].send_signal(number)
        return time.monotonic()

    def wait(self, seconds: float = 600) -> list[int]:
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    @property
    def logs(self) -> list[str]:
        return [file.read_text() for file in self.files]


def train(folder: Path, n: int, run: str, *words: str) -> dict[str, str]:
    """Train to the end and return the hashes of the run."""
    workers = Workers(folder, n, *words, "--run", run)
    codes = workers.wait()
    assert codes == [0] * n, workers.logs
    return hash_run(folder / "runs" / run)


def history(folder: Path, run: str) -> np.ndarray:
    rows = (folder / "runs" / run / "history.csv").read_text().splitlines()[1:]
    return np.array([row.split(",")[2:6] for row in rows], float)


@pytest.mark.slow
def test_workers_end_as_one_process_does_and_alike_each_time(folder: Path) -> None:
    first, again = (train(folder, 3, f"three-{n}", *SCRATCH) for n in (1, 2))
    assert first == again
    train(folder, 1, "one", *SCRATCH)
    np.testing.assert_allclose(history(folder, "three-1"), history(folder, "one"), rtol=1e-4)
    names = {path.name for path in (folder / "runs").glob("[!.]*")}
    logs = {f"three-{run}.worker-{index}.log" for run in (1, 2) for index in (1, 2)}
    assert names == {"three-1", "three-2", "one"} | logs


@pytest.mark.slow
def test_workers_train_a_head_on_the_features_that_they_share(folder: Path) -> None:
    words = [*SCRATCH, "--phase", "frozen", "--cut", "stem"]
    for n in (1, 2):
        train(folder, n, f"head-{n}", *words, "--cache", f"cache-{n}")
    np.testing.assert_allclose(history(folder, "head-2"), history(folder, "head-1"), rtol=1e-4)
    shards = [sorted((folder / f"cache-{n}").rglob("shard-*")) for n in (1, 2)]
    assert [path.name for path in shards[0]] == [path.name for path in shards[1]] != []
    for one, other in zip(*shards, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_workers_without_a_common_folder_keep_parts_of_the_features(folder: Path) -> None:
    words = [*SCRATCH, "--phase", "frozen", "--cut", "stem", "--data", "many.csv"]
    words += ["--test-data", "train.csv", "--batch-size", "24"]
    for n in (1, 3):
        train(folder, n, f"apart-{n}", *words, "--cache", f"apart-{n}-INDEX")
    np.testing.assert_allclose(history(folder, "apart-3"), history(folder, "apart-1"), rtol=1e-4)
    files = [folder / f"runs/apart-{n}/evaluation.json" for n in (1, 3)]
    one, three = (json.loads(file.read_text())["val"]["loss"] for file in files)
    assert three == pytest.approx(one, rel=1e-4)
    shards = {
        n: {path.name: path for path in folder.glob(f"apart-{n}-*/features/*/shard-*")}
        for n in (1, 3)
    }
    assert len(shards[1]) == 3
    assert {name: path.read_bytes() for name, path in shards[3].items()} == {
        name: path.read_bytes() for name, path in shards[1].items()
    }
    assert [len(list((folder / f"apart-3-{n}").rglob("shard-*"))) for n in range(3)] == [1, 1, 1]


@pytest.mark.slow
def test_the_chief_searches_the_cut_for_all(folder: Path) -> None:
    train(folder, 2, "searched", *SCRATCH, "--phase", "frozen", "--cut", "auto")
    config = json.loads((folder / "runs/searched/config.json").read_text())
    assert config["cut"] in ("stem", "conv2")
    assert "cut search" not in (folder / "worker-1.log").read_text()


@pytest.mark.slow
def test_more_workers_than_rows_in_a_batch(folder: Path) -> None:
    words = [*SCRATCH, "--data", "tiny.csv", "--test-data", "train.csv", "--clip-norm", "0.1"]
    words += ["--val-fraction", "0.42", "--batch-size", "5"]  # 7 rows train: 5, then 2
    for n in (1, 3):
        train(folder, n, f"few-{n}", *words)
    np.testing.assert_allclose(history(folder, "few-3"), history(folder, "few-1"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)]
)
def test_a_lost_or_stopped_worker_ends_all_and_the_same_command_continues(
    folder: Path, victim: int, number: int
) -> None:
    words = [*SCRATCH, "--epochs", "12", "--augment", "flip,erasing", "--dropout", "0.3"]
    words += ["--checkpoint-seconds", "0"]
    if not (folder / "runs/undisturbed").exists():
        train(folder, 2, "undisturbed", *words)
    expected = hash_run(folder / "runs/undisturbed")
    run = f"disturbed-{victim}-{number}"
    workers = Workers(folder, 2, *words, "--run", run)
    killed = workers.kill(victim, number, after=r"epoch +2/")
    codes = workers.wait(90)
    assert time.monotonic() - killed < 90
    if number == signal.SIGTERM:
        assert codes == [143, 143], workers.logs
    else:
        assert codes[victim] == -number
        assert codes[1 - victim] == LOST, workers.logs
        assert "another worker ended" in workers.logs[1 - victim]
        assert "Traceback" not in workers.logs[1 - victim]
    if victim == 0:
        assert "another worker ended" in (folder / f"runs/{run}.worker-1.log").read_text()
    assert train(folder, 2, run, *words) == expected


@pytest.mark.slow
def test_a_run_continues_with_another_number_of_workers(folder: Path) -> None:
    workers = Workers(folder, 2, *SCRATCH, "--epochs", "12", "--run", "fewer")
    workers.kill(0, signal.SIGTERM, after=r"epoch +2/")
    assert workers.wait(90) == [143, 143], workers.logs
    train(folder, 1, "fewer", *SCRATCH, "--epochs", "12")
    assert "2 devices and continues on 1" in (folder / "worker-0.log").read_text()
    train(folder, 1, "never-stopped", *SCRATCH, "--epochs", "12")
    np.testing.assert_allclose(
        history(folder, "fewer"), history(folder, "never-stopped"), rtol=1e-2
    )


@pytest.mark.slow
def test_a_worker_with_other_settings_is_refused(folder: Path) -> None:
    addresses = find_addresses(2)
    processes = [
        subprocess.Popen(
            [*TOY, *SCRATCH, "--run", "differing", "--seed", str(index)],
            cwd=folder,
            env={**ENVIRONMENT, "TF_CONFIG": tf_config(*addresses, index=index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    for process in processes:
        _, message = process.communicate(timeout=120)
        assert process.returncode == 2, message
    assert "seed: the chief has 0, worker 1 has 1" in message
    assert not (folder / "runs/differing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CPU", "GPU"])
def test_two_devices_of_one_process_share_batches(folder: Path, kind: str) -> None:
    if kind == "GPU" and not Path("/dev/nvidia0").exists():
        pytest.skip("no GPU")
    script = (
        "import sys; import tensorflow as tf; sys.path.insert(0, sys.argv.pop(1))\n"
        "kind, n = sys.argv.pop(1), int(sys.argv.pop(1))\n"
        "memory = {'CPU': None, 'GPU': 4096}[kind]\n"
        "parts = [tf.config.LogicalDeviceConfiguration(memory)] * n\n"
        "device = tf.config.list_physical_devices(kind)[0]\n"
        "tf.config.set_logical_device_configuration(device, parts)\n"
        "from toy import BACKBONES, build_toy_spec\n"
        "from fmnist_tf.train import main\n"
        "BACKBONES['toy'] = build_toy_spec()\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    visible = {"CPU": "-1", "GPU": "0"}[kind]
    # TF32 would keep 10 bits of a product's factors.
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": visible, "NVIDIA_TF32_OVERRIDE": "0"}
    for n in (1, 2):
        words = [str(TESTS), kind, str(n), *SCRATCH, "--run", f"{kind}-{n}"]
        words += ["--precision", "float32"]
        command = [sys.executable, "-c", script, *words]
        answer = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        assert (f"training on {n} devices of this machine" in answer.stderr) == (n > 1)
    one, two = (history(folder, f"{kind}-{n}") for n in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-4)
