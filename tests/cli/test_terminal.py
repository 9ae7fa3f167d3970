"""Lines, boxes and bars, on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import termios

from fmnist_tf.cli.terminal import BOX_WIDTH, boxed

SCRIPT = """
from fmnist_tf.cli.terminal import progress_bar, say
import time
with progress_bar("features", "image") as show:
    for done in range(0, 51, 25):
        show(done, 50)
        time.sleep(0.15)  # tqdm draws ten times a second
        if done == 25:
            say("a line between")
"""


def test_box_has_straight_edges() -> None:
    lines = boxed("word\x1b " * 40, "another paragraph").splitlines()
    assert {len(line) for line in lines} == {BOX_WIDTH}
    assert all(map(str.isprintable, lines))
    assert lines[0] == lines[-1] == "+" + "-" * (BOX_WIDTH - 2) + "+"
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines[1:-1])


def test_a_pipe_gets_lines_only() -> None:
    answer = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("", "a line between\n")


def run_on_a_terminal(script: str, columns: int = 80, **environment: str) -> str:
    """Return what a terminal shows of a script's output."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, columns))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-c", script], stderr=child, stdout=child, env=inherited | environment
    ) as process:
        os.close(child)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(parent, 4096):
                shown += chunk
    os.close(parent)
    assert process.returncode == 0
    return shown.decode()


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    text = run_on_a_terminal(SCRIPT, 100)
    assert "features:" in text
    assert "/50" in text
    assert "image/s" in text
    assert "a line between" in text


def test_a_bar_with_a_note_fits_80_columns() -> None:
    text = run_on_a_terminal(SCRIPT.replace("50)", "50, 'loss 0.4321 acc 0.8612', 'epoch 2/3')"))
    bars = [line for line in re.split("[\r\n]", text) if line.startswith("epoch 2/3:")]
    assert {len(line) for line in bars} <= {79, 80}
    assert "loss 0.4321 acc 0.8612" in bars[-1]
    assert "image/s" not in bars[-1]


def test_lines_are_wrapped_between_words_and_coloured() -> None:
    command = "python -m fmnist_tf.train --recipe lite"
    line = f"{'word ' * 12}`{command}` {'word ' * 12}"
    script = f"from fmnist_tf.cli.terminal import say, warn\nsay({line!r})\nwarn('beware')"
    first, second, third, fourth = run_on_a_terminal(script).splitlines()
    assert max(map(len, (first, second, third))) <= 80
    assert command in second
    assert fourth == "\x1b[33mbeware\x1b[0m"
    assert "\x1b" not in run_on_a_terminal(script, NO_COLOR="1")
