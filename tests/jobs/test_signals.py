from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from image_reward.jobs.signals import STOP_SIGNALS, sheltered_from_signals


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks on this system")
def test_processes_that_start_never_get_a_signal_to_stop() -> None:
    code = "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    with sheltered_from_signals():
        started = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert {int(number) for number in started.stdout.split()} >= STOP_SIGNALS
    assert not STOP_SIGNALS & signal.pthread_sigmask(signal.SIG_BLOCK, [])
