"""`python -m fmnist_tf.demo RUN`: a page where one drops or draws a picture and sees its class.

The page is Gradio's, served on this machine, without telemetry. It shows the 28x28 pixels that the
network sees, made of the picture as `predict` makes them, and the classes with their probabilities.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fmnist_tf.cli.command import add_run_arguments, add_terminal_flags, run_command
from fmnist_tf.cli.parser import CommandParser
from fmnist_tf.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fmnist_tf.pipeline.saved_run import SavedRun

_SHOWN_CLASSES = 5
_SIDE = 280  # pixels that the 28x28 image is enlarged to

Answer = tuple["dict[str, float] | None", "Image | None", str]
"""Probability of each class, the enlarged 28x28 image, and what was done to the picture."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = CommandParser(
        "demo",
        "Serve a page where one drops or draws a picture and sees its 28x28 pixels and classes; "
        "Ctrl-C ends it. Needs the package gradio.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="address to serve at; 0.0.0.0 lets other machines in (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", metavar="N", type=int, help="port (default: the first free one from 7860)"
    )
    add_terminal_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_demo, build_parser().parse_args(argv))


def _demo(flags: argparse.Namespace) -> None:
    from fmnist_tf.cli.terminal import say
    from fmnist_tf.pipeline.saved_run import open_run

    if find_spec("gradio") is None:
        raise UsageError(
            "demo: expected the package gradio, found none; install it with `python -m pip install "
            "'gradio>=6,<7'`"
        )
    run = open_run(flags.run, flags.runs_dir)
    classify = build_classify(run)
    with TemporaryDirectory() as folder:  # of the pictures that are dropped
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        page = build_page(run, classify)
        try:
            _, url, _ = page.launch(
                server_name=flags.host,
                server_port=flags.port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size="64mb",
                footer_links=[],
            )
        except OSError as error:
            raise UsageError(
                f"--host {flags.host} --port {flags.port}: expected an address of this machine and "
                f"a free port, found: {error}"
            ) from error
        try:
            print(url, flush=True)
            say("Ctrl-C ends it")
            while True:
                signal.pause()
        finally:
            page.close(verbose=False)


def build_classify(run: SavedRun) -> Callable[[str | None], Answer]:
    """Return a function that reads a picture as `predict` does and classifies it.

    Raises:
        UsageError: the run's model is damaged.
    """
    import numpy as np
    from PIL import Image

    from fmnist_tf.data.photos import read_picture
    from fmnist_tf.model.inference import run_all

    # Traces the graph before the first picture.
    run_all(run.run_scaled, np.zeros((1, 784), np.uint8))

    def classify(path: str | None) -> Answer:
        if path is None:
            return None, None, ""
        try:
            pixels, notes, warnings = read_picture(Path(path), run.convention)
        except UsageError as error:
            return None, None, str(error).replace(path, Path(path).name)
        (probabilities,) = run_all(run.run_scaled, pixels[np.newaxis])
        image = Image.fromarray(pixels.reshape(28, 28)).resize((_SIDE, _SIDE), 0)
        said = "\n".join(["; ".join(notes), *warnings])
        return dict(zip(run.class_names, probabilities[0].tolist(), strict=True)), image, said

    return classify


def build_page(run: SavedRun, classify: Callable[[str | None], Answer]) -> Any:
    """Return the page, a `gradio.Blocks`."""
    import gradio as gr

    from fmnist_tf.reporting.model_card import escape_markdown

    name = run.directory.path.absolute().name
    with gr.Blocks(title=f"{name} - fmnist-tf", analytics_enabled=False) as page:
        gr.Markdown(f"# {escape_markdown(name)}")
        for caveat in run.caveats:
            gr.Markdown(f"**{escape_markdown(caveat)}**")
        with gr.Row():
            with gr.Column(), gr.Tabs():
                with gr.Tab("Picture"):
                    picture = gr.Image(
                        type="filepath",
                        image_mode=None,  # the file as it is
                        sources=["upload", "clipboard"],
                        label="Drop a picture of one object",
                        height=400,
                    )
                with gr.Tab("Drawing"):
                    drawing = gr.Sketchpad(
                        type="filepath",
                        format="png",
                        label="Take the brush and draw one object",
                        canvas_size=(400, 400),
                        brush=gr.Brush(
                            default_size=16, default_color="#000000", colors=["#000000"]
                        ),
                        layers=False,
                        transforms=(),
                    )
            with gr.Column():
                classes = gr.Label(
                    label="Class and probability",
                    num_top_classes=min(_SHOWN_CLASSES, len(run.class_names)),
                )
                seen = gr.Image(
                    label="The 28x28 pixels that the network sees",
                    format="png",
                    height=_SIDE + 60,  # with its label above
                    interactive=False,
                    buttons=["download"],
                )
                notes = gr.Textbox(label="What was done to the picture", interactive=False)
        answer = [classes, seen, notes]
        picture.change(classify, picture, answer)
        drawing.change(
            lambda layers: classify(layers["composite"] if layers else None), drawing, answer
        )
    return page


if __name__ == "__main__":
    sys.exit(main())
