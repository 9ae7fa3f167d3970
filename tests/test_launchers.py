"""The launchers of docs/distributed.md: what each block starts are workers of one cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from toyrun import WORDS, draw, write_csv

from fmnist_tf.train import build_parser
from fmnist_tf.training.cluster import Cluster

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/distributed.md").read_text()
COMMAND = "python -m fmnist_tf.train --recipe resnet8 --run shoes"


def block(heading: str) -> str:
    """Return the first block of code below a heading."""
    return re.search(rf"## {heading}\n.*?```\w+\n(.*?)```", PAGE, re.S)[1]


def test_two_terminals_name_two_workers() -> None:
    first = block("Two terminals").replace(COMMAND, "printenv TF_CONFIG")
    assert first != block("Two terminals")
    for index, script in enumerate((first, first.replace('"index": 0', '"index": 1'))):
        answer = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        cluster = Cluster.find({"TF_CONFIG": answer.stdout})
        assert cluster == Cluster(("10.0.0.1:2222", "10.0.0.2:2222"), index)


def test_kubernetes_manifest() -> None:
    service, policy, job = yaml.safe_load_all(block("Kubernetes"))
    name, spec = job["metadata"]["name"], job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (text,) = (entry["value"] for entry in container["env"] if entry["name"] == "TF_CONFIG")
    for index in range(spec["completions"]):
        cluster = Cluster.find({"TF_CONFIG": text.replace("$(INDEX)", str(index))})
        assert (cluster.index, cluster.n_workers) == (index, spec["completions"])
        host, port = cluster.workers[index].split(":")
        assert host == f"{name}-{index}.{service['metadata']['name']}"
        for allowed in (service["spec"], policy["spec"]["ingress"][0]):
            assert {"port": int(port)} in allowed["ports"]
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    build_parser().parse_args(container["args"][1:])


def test_kubernetes_manifest_follows_the_schema() -> None:
    for resource in yaml.safe_load_all(block("Kubernetes")):
        kubernetes_validate.validate(resource, "1.33", strict=True)


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with the page's script, toy data, and an srun and scontrol of our own."""
    words = " ".join([sys.executable, str(ROOT / "tests/toy.py"), *WORDS, "--data", "train.csv"])
    script = block("Slurm").replace(COMMAND, f"{words} --epochs 2 --run shoes")
    assert "toy.py" in script
    tools = {
        "job": script,
        "scontrol": '#!/bin/bash\necho "$@" >> requeued',
        "srun": """#!/bin/bash
            [ -e fails ] && exit 75
            export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost
            export SLURM_STEP_TASKS_PER_NODE=2
            SLURM_PROCID=1 "${@:2}" & SLURM_PROCID=0 "${@:2}" && wait $!""",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o700)
    write_csv(tmp_path / "train.csv", draw(60, 0), list("abc") * 20)
    return tmp_path


def run_job(folder: Path) -> int:
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": str(os.getpid()),
    }
    return subprocess.run([shutil.which("bash"), "job"], cwd=folder, env=environment).returncode


@pytest.mark.slow
def test_slurm_tasks_train_one_run(slurm: Path) -> None:
    assert run_job(slurm) == 0
    names = {path.name for path in (slurm / "runs").glob("[!.]*")}
    assert names == {"shoes", "shoes.worker-1.log"}
    assert not (slurm / "requeued").exists()


def test_slurm_begins_again_after_a_lost_worker(slurm: Path) -> None:
    (slurm / "fails").touch()
    assert run_job(slurm) == 75
    assert (slurm / "requeued").read_text() == f"requeue {os.getpid()}\n"
