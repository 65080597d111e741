"""How a process notices that another of the same run has died on its machine, and then ends too.

gloo raises an error then. NCCL may wait for the dead one inside CUDA, where Python hears no signal: a thread does.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

EVERY = 1.0  # seconds between looks
SOON = 5.0  # seconds in which a process may still end by itself, with its own message

Address = tuple[str, str, int]  # machine, the space its process numbers belong to, process number


def address() -> Address:
    """Where this process is to be found; in other containers of a machine the same number means another process."""
    space = Path("/proc/self/ns/pid")
    return socket.gethostname(), str(space.readlink()) if space.is_symlink() else "", os.getpid()


def end_with(everyone: Sequence[Address]) -> threading.Event:
    """Watch those on this machine, and exit with 1 soon after one is gone; until the returned event is set."""
    *here, own = address()
    pids = [pid for *there, pid in everyone if there == here and pid != own]
    parted = threading.Event()

    def watch() -> None:
        while not parted.wait(EVERY):
            if not all(map(_runs, pids)) and not parted.wait(SOON):
                os._exit(1)

    if pids:
        threading.Thread(target=watch, daemon=True).start()
    return parted


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
