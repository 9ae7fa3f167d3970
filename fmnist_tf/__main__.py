"""`fmnist-tf COMMAND`, or `python -m fmnist_tf COMMAND`, is `python -m fmnist_tf.COMMAND`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("train", "evaluate", "predict", "demo", "report", "export", "convert", "sweep", "clean")


def main() -> int:
    """Run the command that the first word names, and return its exit code."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        return int(importlib.import_module(f"fmnist_tf.{name}").main(words))
    usage = f"usage: fmnist-tf {{{','.join(COMMANDS)}}} ...; each has --help"
    print(usage, file=sys.stdout if name in ("-h", "--help") else sys.stderr)
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
