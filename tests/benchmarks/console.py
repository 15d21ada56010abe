"""The terminal UI: how soon its first frame is there, and how it holds up over a large fleet that never rests.

Everything is measured at the terminal: bytes that a real pseudo-terminal gets, CPU time and memory of the process. The
large fleet is SIMULATED inside the measured process (its cost is in the figures): 500 hosts with 8 GPUs and 4
deployments each, of which every gauge changes once a second.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.figures import Figure

ROOT = Path(__file__).parents[2]
ROUNDS = 15
HOSTS, GPUS, DEPLOYMENTS = 500, 8, 4
SECONDS = 20.0
PARTS = 20
"""Into so many the hosts' changes of a second are spread, as real hosts' would be."""


class Screen:
    """A process on a terminal of 160 by 50."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor, self.count = process, descriptor, 0

    def until(self, wanted: bytes, seconds: float = 30.0) -> float:
        """Read until these bytes have come; how long that took."""
        began, seen = time.perf_counter(), b""
        while wanted not in seen:
            left = seconds - (time.perf_counter() - began)
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise TimeoutError(f"{wanted!r} did not come within {seconds:g} s")
            seen += self._read()
        return time.perf_counter() - began

    def drain(self, seconds: float) -> None:
        """Read whatever comes for so long."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if select.select([self._descriptor], [], [], left)[0]:
                self._read()

    def _read(self) -> bytes:
        found = os.read(self._descriptor, 1 << 16)
        self.count += len(found)
        return found

    def press(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _screen(words: Sequence[str], **extra: str) -> Iterator[Screen]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    path = os.pathsep.join(str(ROOT / part) for part in ("agent", "console", "."))
    environ = {**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color", **extra}
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, env=environ, cwd=ROOT, start_new_session=True
    )
    os.close(slave)
    try:
        yield Screen(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def measure(folder: Path) -> list[Figure]:
    """First frame; key to paint, CPU, bytes and memory over the large fleet."""
    return [_first_frame(folder), *_large_fleet()]


def _first_frame(folder: Path) -> Figure:
    fleet = folder / "fleet.toml"
    fleet.write_text('[hosts.nobody]\nurl = "unix:///nowhere.sock"\n')
    took = []
    for _ in range(ROUNDS):
        with _screen([sys.executable, "-m", "quarterdeck_console"], QUARTERDECK_FLEET=str(fleet)) as screen:
            took.append(screen.until(b"Quarterdeck") * 1000)
    return Figure(
        "console: exec to first frame", min(took), "ms", at_most=400, spread=(min(took), max(took)), needs_quiet=True,
        note="the fastest of the rounds; the others tell how busy the machine was",
    )  # fmt: skip


def _large_fleet() -> list[Figure]:
    words = [sys.executable, "-m", "tests.benchmarks.console"]
    with _screen(words) as screen:
        screen.until(f"{HOSTS} hosts".encode())
        screen.drain(5)
        keys = sorted(_key(screen) for _ in range(60))
        cpu, sent, began = screen.cpu(), screen.count, time.perf_counter()
        before = screen.memory()
        screen.drain(SECONDS)
        seconds = time.perf_counter() - began
        share, rate = (screen.cpu() - cpu) / seconds, (screen.count - sent) / seconds
        grown = screen.memory() - before
    size = f"{HOSTS} hosts × {GPUS} GPUs × {DEPLOYMENTS} deployments at 1 Hz"
    p95 = keys[int(len(keys) * 0.95)] * 1000
    return [
        Figure(
            "console: key to paint, p95", p95, "ms", at_most=50, spread=(keys[0] * 1000, keys[-1] * 1000), note=size
        ),
        Figure("console: CPU of one core", share, "", at_most=0.25, note=f"{size}, which it simulates itself too"),
        Figure("console: to the terminal", rate / 1024, "KiB/s", note=size),
        Figure("console: memory grown", grown / 2**20, "MiB", at_most=8, note=f"in {SECONDS:g} s of that"),
    ]


def _key(screen: Screen) -> float:
    """From a key to the bytes that draw the cursor on its new row."""
    screen.drain(0.08)
    screen.press(b"j")
    return screen.until("▌".encode())


# --- the measured process --------------------------------------------------------------------------------------------


def main() -> None:
    """The console over the simulated large fleet, on this terminal."""
    from quarterdeck_console.preferences import Preferences
    from quarterdeck_console.tui.app import Quarterdeck
    from quarterdeck_console.tui.backend import Backend
    from quarterdeck_console.tui.context import Context
    from tests.console.simulation import Simulation, fleet_file, large

    simulation = Simulation(large(HOSTS, GPUS, DEPLOYMENTS))
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        tasks.append(asyncio.create_task(_changing(simulation.tick_part)))

    def backend() -> Backend:
        app.call_from_thread(begin)
        return simulation

    app = Quarterdeck(Context(fleet_file(simulation.status), now=simulation.now), backend, Preferences(refresh=2.0))
    app.run()


async def _changing(tick: Callable[[int, int], None]) -> None:
    part = 0
    while True:
        tick(part, PARTS)
        part = (part + 1) % PARTS
        await asyncio.sleep(1 / PARTS)


if __name__ == "__main__":
    main()
