"""Time as a parameter: everything that waits or stamps takes a `Clock`, so tests can turn the hands."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """`now` counts seconds since boot and survives the agent (CLOCK_BOOTTIME); it never jumps with the wall clock."""

    boot_id: str

    def now(self) -> float: ...

    def wall(self) -> datetime: ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime:
        return datetime.now(UTC)
