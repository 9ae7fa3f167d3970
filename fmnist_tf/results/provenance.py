"""What a run was made with: commit, versions, machine, command; never who or where the user is."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fmnist_tf.system.cpu import read_cpu_features, read_cpuinfo, usable_cpus

PACKAGES = ("fmnist-tf", "tensorflow", "keras", "numpy", "pandas", "scikit-learn", "wandb")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
SAMPLE = "built-in SAMPLE of handwritten digits"
RANDOM = "RANDOM backbone weights, never pretrained"
_SECRET = re.compile(
    r"(^|[-_=./\s])(api[-_]?key|key|token|secret|passw\w*|authorization)([-_=./\s]|$)|://[^/\s]*@",
    re.IGNORECASE,
)


def find_caveats(data_kind: str, weights_kind: str, phase: str) -> tuple[str, ...]:
    """Return the warnings that every figure, page and model card of a run must carry."""
    caveats = [SAMPLE] if data_kind == "sample" else []
    if weights_kind == "random" and phase != "scratch":
        caveats.append(RANDOM)
    return tuple(caveats)


def describe_code() -> dict[str, Any]:
    """Return the commit of the package's checkout (None outside one) and the installed versions."""
    file = Path(__file__).resolve()

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(file.parents[2]), *words],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # The package may be installed inside a checkout of another project.
    own = git("ls-files", "--error-unmatch", str(file)) is not None
    return {
        "commit": git("rev-parse", "HEAD") if own else None,
        "uncommitted_changes": bool(git("status", "--porcelain")) if own else None,
        "python": platform.python_version(),
        "versions": describe_versions(PACKAGES),
    }


def describe_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each package, or "not installed"."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def describe_machine() -> dict[str, Any]:
    """Return processor, number of usable cores, memory in bytes, and system."""
    model = re.search(r"model name\s*:\s*(.+)", read_cpuinfo())
    features = read_cpu_features()
    return {
        "processor": model[1] if model else platform.processor(),
        "cores": len(usable_cpus()),
        "features": [feature for feature in CPU_FEATURES if feature in features],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def command_line(module: str, arguments: Sequence[str]) -> str:
    """Return the command as one line for a shell, without words that may hold a secret."""
    shown = ["[left out]" if _SECRET.search(word) else word for word in arguments]
    return shlex.join(["python", "-m", module, *shown])
