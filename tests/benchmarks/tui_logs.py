"""Following a chatty deployment in the terminal UI: bytes to the terminal, CPU, and memory when the view is full."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from quarterdeck_agent.protocol import LogLine
from tests.benchmarks.figures import Figure
from tests.benchmarks.hosts import cpu_seconds, memory
from tests.console.fake_agent import FakeAgent, Reply, Request
from tests.console.running import command, environment, fleet_of
from tests.end_to_end.rig import until

COLUMNS, ROWS = 120, 40
RATE = 1000
FASTER = 10_000
SECONDS = 12.0
LOGS = "GET /v1/deployments/digits/logs"
TEXT = "INFO request 4f1c{number:08d} predict digits batch=8 took {took:.2f} ms status=200 bytes=4096 queue=3"


def measure(folder: Path) -> Sequence[Figure]:
    """One console follows one simulated agent, at the usual rate and then at many times that."""
    chatter = Chatter()
    with FakeAgent(folder / "box", answers={LOGS: chatter.reply}) as agent:
        fleet = fleet_of(folder, agent)
        with _console(fleet) as (process, terminal):
            until(lambda: b"digits" in terminal.seen, "the fleet is shown")
            terminal.press(b"l")
            until(lambda: b"following" in terminal.seen and chatter.sent > 3 * RATE, "the log is followed")
            cpu, lines, began = cpu_seconds(process.pid), chatter.sent, time.monotonic()
            bytes_ = _rate(terminal)
            elapsed = time.monotonic() - began
            used, rate = (cpu_seconds(process.pid) - cpu) / elapsed * 100, (chatter.sent - lines) / elapsed
            terminal.press(b"t")
            with_times = _rate(terminal)
            chatter.rate = FASTER
            until(lambda: chatter.sent > 10 * FASTER, "the view is full", 120)
            full = memory(process.pid)
            until(lambda: chatter.sent > 40 * FASTER, "many times as much has gone through", 240)
            grown = memory(process.pid) - full
            assert process.poll() is None
    lines_note = f"{rate:,.0f} lines/s of {len(TEXT)} characters, {COLUMNS}x{ROWS}"
    return [
        Figure("following logs: bytes to the terminal", bytes_, "KiB/s", at_most=40, note=lines_note),
        Figure("following logs with times: bytes to the terminal", with_times, "KiB/s", at_most=40),
        Figure("following logs: CPU", used, "% of a core"),
        Figure("following logs: memory, the view full", full, "MiB"),
        Figure("following logs: memory grown after 300,000 more lines", grown, "MiB", at_most=8),
    ]


def _rate(terminal: _Terminal) -> float:
    """KiB a second that come, over some seconds."""
    before, began = terminal.count, time.monotonic()
    time.sleep(SECONDS)
    return (terminal.count - before) / (time.monotonic() - began) / 1024


class Chatter:
    """A deployment that talks at a steady rate to whoever follows."""

    def __init__(self) -> None:
        self.rate, self.sent = RATE, 0

    async def reply(self, _request: Request) -> Reply:
        return Reply(stream=self._lines(), media="application/x-ndjson")

    async def _lines(self) -> AsyncIterator[bytes]:
        due = time.monotonic()
        while True:
            batch = []
            for _ in range(self.rate // 20):
                self.sent += 1
                text = TEXT.format(number=self.sent, took=1 + self.sent % 700 / 100)
                batch.append(LogLine(datetime.now(UTC), "digits", 2, "digits-2-1", "stdout", text))
            yield b"".join(msgspec.json.encode(line) + b"\n" for line in batch)
            due = max(due + 0.05, time.monotonic() - 0.5)
            await asyncio.sleep(max(0.0, due - time.monotonic()))


class _Terminal:
    """Reads whatever comes, as fast as it comes, and counts it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.count, self.seen = 0, b""
        threading.Thread(target=self._read, daemon=True).start()

    def press(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:
                return
            if not data:
                return
            self.count += len(data)
            self.seen = (self.seen + data)[-100_000:]


@contextmanager
def _console(fleet: Path) -> Iterator[tuple[subprocess.Popen[bytes], _Terminal]]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    extra = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "QUARTERDECK_CONSOLE": "/nonexistent"}
    process = subprocess.Popen(
        command(), stdin=slave, stdout=slave, stderr=slave, env=environment(fleet, extra), start_new_session=True
    )
    os.close(slave)
    try:
        yield process, _Terminal(master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
