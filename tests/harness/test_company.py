"""Who is timed has the processors to itself, and nobody stays stopped."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from peregrine.harness.company import Company
from peregrine.harness.process import Worker

# Busy, with a busy child in a session of its own.
_BUSY = """
import subprocess, sys
child = [sys.executable, "-c", "while True: pass"]
subprocess.Popen(child, start_new_session=True)
while True: pass
"""


class Busy(Worker):
    """A process at work, with what it started."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, "-c", _BUSY], start_new_session=True)
        self._watched = psutil.Process(self._process.pid)
        self._killed, self._calls = False, 1
        self._pauses, self._paused_at = [], None
        while not self._watched.children():
            time.sleep(0.01)

    def end(self):
        for process in self._tree():
            process.kill()
        self._process.wait()


@pytest.fixture
def busy():
    found = Busy()
    yield found
    found.end()


def used(worker):
    return sum(sum(p.cpu_times()[:2]) for p in worker._tree())


def test_others_at_work_stand_still_and_go_on(busy):
    company = Company()
    company.join(busy)
    timed = type("Timed", (), {"is_at_work": True})()
    company.join(timed)
    with company.still(timed):
        time.sleep(0.1)  # until the signals are there
        before = used(busy)
        time.sleep(0.5)
        assert used(busy) - before <= 0.02
        assert {p.status() for p in busy._tree()} == {psutil.STATUS_STOPPED}
    time.sleep(0.5)
    assert used(busy) - before > 0.1
    assert busy.paused_s() == pytest.approx(0.6, abs=0.3)
    busy._calls = 0
    with company.still(timed):  # it waits for a command: nothing to stop
        assert psutil.STATUS_STOPPED not in {p.status() for p in busy._tree()}
    company.close()


def test_a_race_that_is_killed_leaves_nobody_stopped(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_company import Busy
        from peregrine.harness.company import Company
        company, busy = Company(), Busy()
        company.join(busy)
        with company.still(object()):
            print(*(p.pid for p in busy._tree()), flush=True)
            time.sleep(60)
        """
    )
    race = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert race.stdout is not None
    left = [psutil.Process(int(pid)) for pid in race.stdout.readline().split()]
    try:
        assert [p.status() for p in left] == [psutil.STATUS_STOPPED] * 2
        race.send_signal(signal.SIGKILL)
        race.wait()
        deadline = time.monotonic() + 10
        while psutil.STATUS_STOPPED in [p.status() for p in left]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        for process in left:
            process.kill()
        race.stdout.close()
