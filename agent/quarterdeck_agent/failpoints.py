"""Places at which a test may have the agent die: each ends the process with SIGKILL when a test has armed it.

Outside tests the environment has no QUARTERDECK_FAILPOINTS and nothing happens. In a test it names a folder: every
point that is reached is written to `reached` in it, and the point that `armed` names (`name` or `name#n` for the n-th
time it is reached from then on) is disarmed and kills.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

_FOLDER = os.environ.get("QUARTERDECK_FAILPOINTS")
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """A point that a test may arm. Costs nothing otherwise."""
    if _FOLDER is not None:
        with _lock:
            _reached(Path(_FOLDER), name)


def _reached(folder: Path, name: str) -> None:
    with (folder / "reached").open("a") as reached:
        reached.write(name + "\n")
    armed = folder / "armed"
    try:
        wanted, _, left = armed.read_text().strip().partition("#")
    except FileNotFoundError:
        return
    if wanted != name:
        return
    if int(left or 1) > 1:
        armed.write_text(f"{name}#{int(left) - 1}")
        return
    armed.unlink()  # or the agent that is started next would die here too
    os.kill(os.getpid(), signal.SIGKILL)
