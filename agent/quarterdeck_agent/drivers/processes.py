"""Who the processes on a GPU are, from /proc: user, command, kin and control groups of the pids that NVML lists.

Never a command's arguments: they may hold secrets. What is known of a process is kept by its pid and start time, so
that a steady host costs one short file per process and look. A pid that has gone, or that means somebody else in
another pid namespace, is simply unknown.
"""

from __future__ import annotations

import os
import pwd
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from quarterdeck_agent.drivers.lane import Lane, finished

DEADLINE = 1.0
"""Reading the command of a process whose memory a driver holds locked may hang for as long as the driver does."""

MOST = 1024
"""Processes that one look reads at most; the rest stays unknown."""

DEPTH = 64
"""Ancestors that are followed at most."""

REFRESH = 30.0
"""Seconds after which user, command and control groups of a process are read again: it may have become another."""

NAME_LENGTH = 64
NAME_WAIT = 0.2
"""Seconds that a user's name may take to look up: behind it may stand a directory service that does not answer."""

Kin = tuple[int, int]
"""A process beyond doubt: its pid and its start time (proc(5), field 22 of stat)."""


@dataclass(frozen=True, slots=True)
class HostProcess:
    """One process of this host.

    `kin` are the process itself, its ancestors and the leader of its session, as they were when it was first seen: one
    whose parents have ended since keeps them. `groups` are the names on the way to its control groups, in no order.
    """

    pid: int
    start: int
    user: str | None = None
    command: str | None = None
    kin: frozenset[Kin] = frozenset()
    groups: frozenset[str] = frozenset()


class ProcessReader:
    """Reads processes in a thread of its own. While one look hangs no second one begins, and what was known stands."""

    def __init__(
        self, root: Path = Path("/proc"), deadline: float = DEADLINE, user_of: Callable[[int], str] | None = None
    ) -> None:
        self._root, self._deadline = str(root), deadline
        self._users = UserNames() if user_of is None else user_of
        self._known: dict[Kin, tuple[HostProcess, float]] = {}
        self._last: dict[int, HostProcess] = {}
        # A thread of its own: one that hangs in the kernel must not keep the agent from ending.
        self._lane = Lane("processes")
        self._asked: Future[None] | None = None

    async def look(self, pids: Iterable[int]) -> Mapping[int, HostProcess]:
        """Those of `pids` that run on this host, by pid; returns within the deadline, at once while a look hangs."""
        within = 0.0
        if self._asked is None:
            asked = tuple(dict.fromkeys(pid for pid in pids if pid > 0))[:MOST]
            if not asked:
                self._known, self._last = {}, {}
                return self._last
            within, self._asked = self._deadline, self._lane.do(lambda: self._take(asked))
        done = self._asked
        if await finished(done, within):
            self._asked = None
            done.result()
        return self._last

    def close(self) -> None:
        """Let go of the thread; what hangs is left to it."""
        self._lane.end()

    def _take(self, pids: tuple[int, ...]) -> None:
        self._last = self.read(pids)

    def read(self, pids: Iterable[int]) -> dict[int, HostProcess]:
        """As `look`, in the caller's thread and for as long as it takes."""
        now = time.monotonic()
        found: dict[int, HostProcess] = {}
        known: dict[Kin, tuple[HostProcess, float]] = {}
        for pid in pids:
            stat = self._stat(pid)
            if stat is None:
                continue
            person = pid, stat.start
            entry = self._known.get(person)
            if entry is None or now - entry[1] >= REFRESH:
                entry = self._described(pid, stat, entry and entry[0]), now
            known[person] = entry
            found[pid] = entry[0]
        self._known = known
        return found

    # --- one process -------------------------------------------------------------------------------------------

    def _described(self, pid: int, stat: Stat, before: HostProcess | None) -> HostProcess:
        command = self._command(pid, stat.name)
        made = HostProcess(pid, stat.start, self._user(pid), command, self._kin(pid, stat), self._groups(pid))
        return made if before is None else replace(made, kin=made.kin | before.kin)

    def _kin(self, pid: int, stat: Stat) -> frozenset[Kin]:
        kin = {(pid, stat.start)}
        leader = self._stat(stat.session) if stat.session > 1 else None
        if leader is not None:
            kin.add((stat.session, leader.start))
        for _ in range(DEPTH):
            # Everything comes from init, which tells nothing.
            if stat.parent <= 1:
                break
            parent, above = stat.parent, self._stat(stat.parent)
            if above is None:
                break
            kin.add((parent, above.start))
            stat = above
        return frozenset(kin)

    def _stat(self, pid: int) -> Stat | None:
        raw = self._bytes(pid, "stat")
        name, _, rest = raw.rpartition(b")")
        fields = rest.split()
        try:
            # After the name, which may hold anything: state, parent, group, session, … start time (proc(5)).
            return Stat(_clean(name.partition(b"(")[2]), int(fields[1]), int(fields[3]), int(fields[19]))
        except (IndexError, ValueError):
            return None

    def _command(self, pid: int, name: str | None) -> str | None:
        """The base of the first word. A title that a program gave itself may hold arguments: then the kernel's name."""
        first = self._bytes(pid, "cmdline").partition(b"\0")[0]
        return name if not first or len(first.split()) != 1 else _clean(first.rpartition(b"/")[2]) or name

    def _user(self, pid: int) -> str | None:
        for line in self._bytes(pid, "status").splitlines():
            if line.startswith(b"Uid:"):
                return self._users(int(line.split()[2]))
        return None

    def _groups(self, pid: int) -> frozenset[str]:
        paths = (line.split(b":", 2)[-1] for line in self._bytes(pid, "cgroup").splitlines())
        return frozenset(os.fsdecode(name) for path in paths for name in path.split(b"/") if name)

    def _bytes(self, pid: int, name: str) -> bytes:
        try:
            descriptor = os.open(f"{self._root}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.read(descriptor, 8192)
        except OSError:
            return b""
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says of a process: its name, parent, session and start time in ticks since boot."""

    name: str | None
    parent: int
    session: int
    start: int


class UserNames:
    """Names of users. One that cannot be had at once is told as its number, and by its name later on."""

    def __init__(self, look_up: Callable[[int], str] = lambda uid: pwd.getpwuid(uid).pw_name) -> None:
        self._look_up = look_up
        self._names: dict[int, str] = {}
        self._asked: dict[int, threading.Thread] = {}

    def __call__(self, uid: int) -> str:
        name = self._names.get(uid)
        if name is not None:
            return name
        asking = self._asked.get(uid)
        if asking is None:
            asking = threading.Thread(target=self._ask, args=(uid,), name="user names", daemon=True)
            self._asked[uid] = asking
            asking.start()
            asking.join(NAME_WAIT)
        return self._names.get(uid, str(uid))

    def _ask(self, uid: int) -> None:
        try:
            self._names[uid] = self._look_up(uid)
        except (KeyError, OSError):
            self._names[uid] = str(uid)


def _clean(raw: bytes) -> str | None:
    text = raw.decode("utf-8", "replace")[:NAME_LENGTH]
    return "".join(char if char.isprintable() else "�" for char in text) or None
