"""Lines, boxes and bars, on a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
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


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=child, stdout=child)
    os.close(child)
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    text = shown.decode()
    assert "features:" in text
    assert "/50" in text
    assert "image/s" in text
    assert "a line between" in text
