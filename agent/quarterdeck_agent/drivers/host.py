"""Reads the machine's own figures. Everything is cheap enough for once a second; the disk is asked every tenth time."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path

import psutil

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.protocol import HostGauges

DISK_EVERY = 10.0


class HostReader:
    """Reads gauges; rates are over the time since the last reading. For one thread at a time."""

    def __init__(self, data_folder: Path, clock: Clock) -> None:
        self._folder, self._clock = data_folder, clock
        self._disk: tuple[int | None, int | None] = (None, None)
        self._disk_at = -DISK_EVERY
        self._busy: tuple[float, float] | None = None
        self._own: tuple[float, float] | None = None

    def read(self) -> HostGauges:
        """The gauges now; CPU figures are `None` on the first reading."""
        memory = psutil.virtual_memory()
        disk_total, disk_used = self._read_disk()
        return HostGauges(
            at=self._clock.wall(),
            cpu=self._cpu(),
            load1=os.getloadavg()[0],
            memory_total=memory.total,
            memory_used=memory.total - memory.available,
            disk_total=disk_total,
            disk_used=disk_used,
            agent_memory=_resident(),
            agent_cpu=self._own_cpu(),
        )

    def memory_available(self) -> int:
        """Bytes that new work could have without swapping (MemAvailable)."""
        return int(psutil.virtual_memory().available)

    def _cpu(self) -> float | None:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests are counted in user time already (proc(5)).
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        before, self._busy = self._busy, (total - idle, total)
        if before is None or total <= before[1]:
            return None
        return min(1.0, max(0.0, float((total - idle - before[0]) / (total - before[1]))))

    def _own_cpu(self) -> float | None:
        used, now = time.process_time(), self._clock.now()
        before, self._own = self._own, (used, now)
        return None if before is None or now <= before[1] else (used - before[0]) / (now - before[1])

    def _read_disk(self) -> tuple[int | None, int | None]:
        now = self._clock.now()
        if now - self._disk_at >= DISK_EVERY:
            self._disk_at = now
            try:
                facts = os.statvfs(self._folder)
            except OSError:
                self._disk = (None, None)
            else:
                # As df: what root alone may use counts as used.
                total = (facts.f_blocks - facts.f_bfree + facts.f_bavail) * facts.f_frsize
                self._disk = (total, (facts.f_blocks - facts.f_bfree) * facts.f_frsize)
        return self._disk


def _resident() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - every second
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def clock_synchronised() -> bool | None:
    """Whether NTP disciplines the kernel's clock (adjtimex(2): not STA_UNSYNC); `None` where it cannot be told."""
    if struct.calcsize("P") != 8:
        return None
    timex = ctypes.create_string_buffer(512)  # modes = 0 only reads
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return None
    (status,) = struct.unpack_from("i", timex, 40)
    return not status & 0x0040
