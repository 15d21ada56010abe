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
import re
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
PARTS = 100
"""Into so many the hosts' changes of a second are spread, as real hosts' would be."""
KEYS = 100
SIZE = f"{HOSTS} hosts × {GPUS} GPUs × {DEPLOYMENTS} deployments at 1 Hz"


_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")


class Screen:
    """A process on a terminal of 160 by 50."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor, self.count = process, descriptor, 0
        self._last = b""

    def until(self, wanted: bytes, seconds: float = 30.0, began: float | None = None) -> float:
        """Read until this text has come, in whatever colours; how long that took from `began`, or from now."""
        began, seen = began or time.perf_counter(), b""
        while wanted not in _COLOURS.sub(b"", seen):
            left = seconds - (time.perf_counter() - began)
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise TimeoutError(f"{wanted!r} did not come within {seconds:g} s")
            seen += self._read()
        self._last = _COLOURS.sub(b"", seen)
        return time.perf_counter() - began

    def seen(self, wanted: bytes) -> bool:
        """Whether the last `until` got this text too."""
        return wanted in self._last

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

    def press(self, keys: bytes) -> float:
        """Send these keys; when that was."""
        began = time.perf_counter()
        os.write(self._descriptor, keys)
        return began

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
        moves = _latency("console: key to paint, p95", [_move(screen, place) for place in range(1, KEYS)], SIZE)
        cpu, sent, began = screen.cpu(), screen.count, time.perf_counter()
        before = screen.memory()
        screen.drain(SECONDS)
        seconds = time.perf_counter() - began
        share, rate = (screen.cpu() - cpu) / seconds, (screen.count - sent) / seconds
        grown = screen.memory() - before
        for _ in range(8):  # to the rate, which changes all the time
            screen.press(b"s")
            screen.drain(0.1)
        sorting = _latency(
            "console: sort key to paint, p95", [_sort(screen, mark) for mark in "▼▲" * (KEYS // 2)], SIZE
        )
        sorted_by = _latency(
            "console: key to paint while sorted, p95", [_moved(screen, key) for key in b"gG" * (KEYS // 2)], SIZE
        )
        typed = [each for _ in range(KEYS // 9) for each in _typed(screen)]
        typing = [
            _latency("console: filter key to paint, p95", [echoed for echoed, _ in typed], SIZE),
            _latency("console: filter key to its rows, p95", [counted for _, counted in typed], SIZE, bound=None),
        ]
    return [
        moves,
        sorting,
        sorted_by,
        *typing,
        Figure("console: CPU of one core", share, "", at_most=0.25, note=f"{SIZE}, which it simulates itself too"),
        Figure("console: to the terminal", rate / 1024, "KiB/s", note=SIZE),
        Figure("console: memory grown", grown / 2**20, "MiB", at_most=8, note=f"in {SECONDS:g} s of that"),
    ]


def _latency(name: str, took: Sequence[float], note: str, bound: float | None = 50) -> Figure:
    found = sorted(each * 1000 for each in took)
    p95 = found[int(len(found) * 0.95)]
    spread = (found[0], found[-1])
    return Figure(name, p95, "ms", at_most=bound, spread=spread, note=f"{note}; {len(found)} keys", needs_quiet=True)


def _move(screen: Screen, place: int) -> float:
    """From a key to the bytes that draw the cursor on its new row, which is this one. The rows begin to scroll."""
    screen.drain(0.08)
    row = f"▌gpu-{place // DEPLOYMENTS:04d} ● model-{place % DEPLOYMENTS}"
    return screen.until(row.encode(), began=screen.press(b"j"))


def _moved(screen: Screen, key: int) -> float:
    """From a key to the first or the last row to the bytes that draw the cursor there."""
    screen.drain(0.08)
    return screen.until("▌".encode(), began=screen.press(bytes([key])))


def _sort(screen: Screen, mark: str) -> float:
    """From `S`, which reverses the order, to the column's title with the mark of that."""
    screen.drain(0.08)
    return screen.until(mark.encode(), began=screen.press(b"S"))


def _typed(screen: Screen) -> Iterator[tuple[float, float]]:
    """Each key of a filter, to the key's character and to the count of rows that match; then no filter again."""
    screen.press(b"/")
    screen.drain(0.1)
    typed = b""
    for key in b"gpu-04":
        typed += bytes([key])
        screen.drain(0.08)
        began = screen.press(bytes([key]))
        echoed = screen.until(typed, began=began)
        yield echoed, echoed if screen.seen(b"/" + typed + b" ") else screen.until(b"/" + typed + b" ", began=began)
    screen.press(b"\x1b")
    screen.drain(0.2)


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
