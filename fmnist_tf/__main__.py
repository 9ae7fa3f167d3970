"""`fmnist-tf COMMAND`, or `python -m fmnist_tf COMMAND`, is `python -m fmnist_tf.COMMAND`."""

from __future__ import annotations

import importlib
import sys

from fmnist_tf import __version__
from fmnist_tf.cli.parser import name_command
from fmnist_tf.cli.terminal import RED, warn
from fmnist_tf.errors import printable, suggest

ABOUT = "Turn an ImageNet network into a classifier of 28x28 grey images."
COMMANDS = {
    "train": "train a classifier: frozen backbone, fine-tuning, or from scratch",
    "evaluate": "measure a run on its test data, or on other labelled images",
    "predict": "print the most probable classes of images and pictures",
    "demo": "serve a page where one drops or draws a picture",
    "report": "list the runs; write the page of one, or of several compared",
    "export": "convert a run's model to SavedModel, LiteRT or ONNX",
    "sweep": "train with many settings and compare them",
    "convert": "mend a file of images, and write it as a CSV",
    "clean": "remove what stopped runs have left",
}


def main() -> int:
    """Run the command that the first word names, and return its exit code."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        return int(importlib.import_module(f"fmnist_tf.{name}").main(words))
    if name == "--version":
        print(f"fmnist-tf {__version__}")
    elif name in ("-h", "--help", "help"):
        print(f"usage: {name_command()} COMMAND ...\n\n{ABOUT}\n")
        print(*(f"  {name:10}{line}" for name, line in COMMANDS.items()), sep="\n")
        print(f"\n`{name_command()} COMMAND --help` lists the flags of a command.")
    else:
        warn(f"unknown command {printable(name)}; {suggest(name, COMMANDS)}", RED)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
