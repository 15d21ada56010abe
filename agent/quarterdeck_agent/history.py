"""Gauges for weeks: gathers what the sampler sees into minutes and writes each minute, once it is over, to a file.

It writes beside the loop and keeps what cannot be written for a while; neither a full disk nor a damaged file, nor one
that hangs, ever harms the agent or holds it up.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from quarterdeck_agent import historyfile
from quarterdeck_agent.historyfile import HistoryFile, Minute, Point
from quarterdeck_agent.series import Key

log = logging.getLogger(__name__)

DAYS = 30
SIZE = 256 << 20
WAITING = 120
"""So many minutes are kept in memory while the file cannot be written."""

KEPT = ("host.", "agent.", "gpu.", "revision.", "traffic.")
"""What is worth weeks: the host, its GPUs and each revision. Single replicas come and go."""

CLOSING = 5.0


@dataclass(slots=True)
class _Tally:
    count: int = 0
    total: float = 0.0
    peak: float = -math.inf

    def point(self) -> Point:
        return self.total / self.count, self.peak


class Minutes:
    """Keeps `days` days of minutes in at most about `size` bytes; the oldest day goes first.

    `add` is called on the loop and never waits. Age is measured from the newest minute.
    """

    def __init__(self, path: Path, *, days: int = DAYS, size: int = SIZE) -> None:
        self.path, self.days = path, days
        self._size = size
        self._now = 0
        self._tallies: dict[Key, _Tally] = {}
        self._waiting: deque[Minute] = deque(maxlen=WAITING)
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._file: HistoryFile | None = None
        self._trouble = ""
        self._suspect = False

    @property
    def trouble(self) -> str:
        """Why minutes are not written now; empty while they are."""
        return self._trouble

    def add(self, at: datetime, values: Mapping[Key, float | None]) -> None:
        """One tick: what every series by (name, key) was at `at`."""
        minute = int(at.timestamp() // 60)
        if minute != self._now:
            self._finish()
            self._begin_writing()
            self._now = minute
        for key, value in values.items():
            if value is not None and key[0].startswith(KEPT):
                tally = self._tallies.get(key)
                if tally is None:
                    tally = self._tallies[key] = _Tally()
                tally.count += 1
                tally.total += value
                if value > tally.peak:
                    tally.peak = float(value)

    def recent(self, key: Key) -> dict[int, Point]:
        """The minutes of one series that the file may not have yet, that which has just begun included."""
        found = {minute.number: minute.points[key] for minute in self._unwritten() if key in minute.points}
        if key in self._tallies:
            found[self._now] = self._tallies[key].point()
        return found

    def read(self, key: Key, first: int, last: int) -> dict[int, Point] | None:
        """The written minutes of one series; `None` where there is none of it, or where it cannot be read. Blocks."""
        try:
            return historyfile.read(self.path, key, first, last)
        except (sqlite3.Error, OSError) as error:
            self._unread(error)
            return None

    def names(self) -> frozenset[Key]:
        """Every series that is kept, as far as it can be read. Blocks."""
        waiting = {key for minute in self._unwritten() for key in minute.points}
        try:
            return frozenset(historyfile.names(self.path)) | waiting
        except (sqlite3.Error, OSError) as error:
            self._unread(error)
            return frozenset(waiting)

    def close(self) -> None:
        """Write what there is, the minute that has begun included. Blocks, but not for long."""
        self._finish()
        self.settle(CLOSING)
        if self._writer is not None and self._writer.is_alive():
            log.warning("the history %s was left behind: the disk does not answer", self.path)
            return
        if self._waiting:
            self._write()
        if self._file is not None:
            self._file.close()
            self._file = None

    def settle(self, deadline: float) -> None:
        """Wait until what is being written is written."""
        if self._writer is not None:
            self._writer.join(deadline)

    def _unread(self, error: sqlite3.Error | OSError) -> None:
        if not self._suspect:
            log.warning("the history %s cannot be read: %s", self.path, error)
        self._suspect = True

    # --- writing -----------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        points = {key: tally.point() for key, tally in self._tallies.items() if math.isfinite(tally.total)}
        self._tallies.clear()
        if points:
            with self._lock:
                self._waiting.append(Minute(self._now, points))

    def _unwritten(self) -> tuple[Minute, ...]:
        with self._lock:
            return tuple(self._waiting)

    def _written(self, minutes: tuple[Minute, ...]) -> None:
        with self._lock:
            for minute in minutes:
                if self._waiting and self._waiting[0] is minute:
                    self._waiting.popleft()

    def _begin_writing(self) -> None:
        if self._waiting and (self._writer is None or not self._writer.is_alive()):
            # A daemon thread: one that hangs on the disk must not keep the agent from ending.
            self._writer = threading.Thread(target=self._write, name="history", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        minutes = self._unwritten()
        try:
            self._keep(minutes)
        except (sqlite3.Error, OSError) as error:
            self._tell(f"{error}")
        except Exception:
            if not self._trouble:
                log.exception("the history %s is not written", self.path)
            self._trouble = "a fault of ours; the agent's log has more"
        else:
            self._written(minutes)
            if self._trouble:
                log.info("the history %s is written again", self.path)
                self._trouble = ""

    def _keep(self, minutes: tuple[Minute, ...]) -> None:
        """Write `minutes`. A file that is damaged is put aside, and a new one takes them."""
        try:
            self._keep_in_file(minutes)
        except sqlite3.Error as error:
            if not historyfile.damaged(error):
                raise
            aside = historyfile.put_aside(self.path)
            log.error(
                "the history %s is damaged (%s): it was put aside as %s, a new one begins", self.path, error, aside
            )
            self._keep_in_file(minutes)

    def _keep_in_file(self, minutes: tuple[Minute, ...]) -> None:
        if self._file is not None and (self._suspect or not self._file.in_place):
            self._file.close()
            self._file = None
        if self._file is None:
            self._file = HistoryFile(self.path)
            self._suspect = False
        newest = max((minute.number for minute in minutes), default=0)
        try:
            self._file.keep(minutes, since=newest // 60 - self.days * 24, size=self._size)
        except BaseException:
            # Opened anew next time: what the connection thinks of the file may be wrong by then.
            self._file.close()
            self._file = None
            raise

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("the history %s is not written: %s; it is tried again every minute", self.path, trouble)
        self._trouble = trouble
