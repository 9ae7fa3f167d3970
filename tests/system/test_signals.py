"""A signal is heard, also when what it raises is dropped on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fmnist_tf.system import signals


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_signal_raises_at_once(number: int, code: int, text: str) -> None:
    before = signal.getsignal(number)
    with pytest.raises(signals.StoppedError) as caught, signals.listening():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert (caught.value.exit_code, str(caught.value)) == (code, text)


def test_what_is_dropped_comes_again_once() -> None:
    with signals.listening():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except signals.StoppedError:
            pass  # as a destructor does
        with pytest.raises(signals.StoppedError):
            signals.check()
        signals.check()


def test_a_second_signal_ends_the_process() -> None:
    script = (
        "import os, signal\n"
        "from fmnist_tf.system import signals\n"
        "with signals.listening():\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        except signals.StoppedError:\n"
        "            pass\n"
        "print('still here')\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (-signal.SIGTERM, "")


def test_deferred_signals_wait_for_the_next_check() -> None:
    with signals.listening(), signals.deferred():
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        with pytest.raises(signals.StoppedError) as caught:
            signals.check()
        assert caught.value.exit_code == 128 + signal.SIGUSR1


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check()
    finally:
        signal.signal(signal.SIGHUP, before)
