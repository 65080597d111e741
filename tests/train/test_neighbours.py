"""A process ends with the others of its run on its machine, and with no one else."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from xwincli.train import neighbours

WATCHING = """
import sys, time
from xwincli.train import neighbours
neighbours.EVERY = neighbours.SOON = 0.05
parted = neighbours.end_with([neighbours.address(), (*neighbours.address()[:2], int(sys.argv[1]))])
if sys.argv[2] == "parted":
    parted.set()
print("watching", flush=True)
time.sleep(2)
"""


@pytest.mark.parametrize("how,code", [("together", 1), ("parted", 0)])
def test_a_process_ends_soon_after_another_unless_they_parted(how, code):
    other = subprocess.Popen(["sleep", "99"])
    command = [sys.executable, "-c", WATCHING, str(other.pid), how]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watching.stdout.readline() == "watching\n"
    time.sleep(0.5)
    assert watching.poll() is None, "both live"
    other.kill()
    other.wait()
    assert watching.wait(10) == code


def test_processes_of_other_machines_and_containers_are_not_watched():
    """Their numbers may be those of nobody here."""
    machine, space, own = neighbours.address()
    before = threading.active_count()
    neighbours.end_with([(machine, space, own), ("elsewhere", space, 1), (machine, "pid:[1]", 1)])
    assert threading.active_count() == before
