"""A push of 2 GB over the local socket: how fast, how much memory it takes, and what disk and SHA-256 allow.

In turns with the pushes the same number of bytes is written and synced to the same disk by plain Python, hashed, and
sent over a Unix socket by sendfile.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median as middle

from tests.benchmarks.figures import Figure, median
from tests.benchmarks.hosts import memory
from tests.end_to_end.rig import Agent, agent
from tests.models import trivial_bundle

SIZE = 2_000_000_000
ROUNDS = 3
BLOCK = 4 << 20
BOUND = 400
GROWTH = 64


@dataclass
class Rates:
    """MB/s of each round."""

    disk: list[float] = field(default_factory=list)
    hashing: list[float] = field(default_factory=list)
    sendfile: list[float] = field(default_factory=list)
    upload: list[float] = field(default_factory=list)
    push: list[float] = field(default_factory=list)


def measure(folder: Path) -> Sequence[Figure]:
    """Rounds of disk, hash, socket and push in turns."""
    rates, growth = Rates(), []
    with agent(folder / "host") as host:
        for number in range(ROUNDS):
            bundle = trivial_bundle(folder / "bundle", "large", str(number))
            weights = bundle / "weights.bin"
            rates.disk.append(_rate(_write, weights))
            rates.hashing.append(_rate(_hash, weights))
            rates.sendfile.append(_rate(_send, weights))
            before = memory(host.pid)
            upload, push = _push(host, bundle)
            rates.upload.append(SIZE / 1e6 / upload)
            rates.push.append(SIZE / 1e6 / push)
            growth.append(memory(host.pid, "VmHWM") - before)
            weights.unlink()
            os.sync()
    against = ", ".join(
        f"{name} {middle(values):,.0f} MB/s"
        for name, values in (
            ("write + fsync", rates.disk),
            ("SHA-256", rates.hashing),
            ("sendfile", rates.sendfile),
        )
    )
    return [
        median("push of 2 GB: the upload", rates.upload, "MB/s", at_least=BOUND, baseline=against, needs_quiet=True),
        median(
            "push of 2 GB: upload ÷ what the disk does",
            [mine / theirs for mine, theirs in zip(rates.upload, rates.disk, strict=True)],
            note=_bound_by_disk(rates),
        ),
        median("push of 2 GB: hashing in `qd` included", rates.push, "MB/s", baseline=against),
        Figure(
            "push of 2 GB: growth of the agent", max(growth), "MiB", at_most=GROWTH, baseline=f"{before:.0f} MiB before"
        ),
    ]


def _bound_by_disk(rates: Rates) -> str:
    disk = middle(rates.disk)
    if disk >= BOUND:
        return ""
    return f"this disk takes {disk:,.0f} MB/s when every byte has to be durable: no push can be faster than that"


def _rate(work: Callable[[Path], None], path: Path) -> float:
    began = time.perf_counter()
    work(path)
    return SIZE / 1e6 / (time.perf_counter() - began)


def _write(path: Path) -> None:
    """Bytes that were never there before, so that no push finds them on the host."""
    block = os.urandom(BLOCK)
    with path.open("wb", buffering=0) as file:
        left = SIZE
        while left:
            left -= file.write(block[: min(left, BLOCK)])
        os.fsync(file.fileno())


def _hash(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _send(path: Path) -> None:
    """To a reader that throws everything away."""
    sender, receiver = socket.socketpair()

    def drain() -> None:
        buffer = bytearray(1 << 20)
        while receiver.recv_into(buffer):
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    with sender, path.open("rb") as file:
        sender.sendfile(file)
    reader.join()
    receiver.close()


def _push(host: Agent, bundle: Path) -> tuple[float, float]:
    """Seconds of the upload (from its first byte on the agent's disk) and of the whole `qd push`."""
    partial = host.data_folder / "blobs" / "partial"
    first: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            if any(path.stat().st_size for path in partial.iterdir()):
                first.append(time.perf_counter())
                return

    watcher = threading.Thread(target=watch)
    began = time.perf_counter()
    watcher.start()
    try:
        host.must("push", str(bundle))
    finally:
        ended.set()
        watcher.join()
    now = time.perf_counter()
    return now - first[0], now - began
