"""The logs of every revision and replica this host still keeps: read, followed, searched, and pruned to their cap.

Readers pull from the files at their own pace. Whoever follows and falls behind is told how many lines it missed; the
writers never wait for anybody and nothing is queued for anyone. It never writes a log line.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from quarterdeck_agent.clock import Clock, SystemClock
from quarterdeck_agent.errors import NotFound
from quarterdeck_agent.grep import Everything, Pattern, pattern
from quarterdeck_agent.protocol import LogLine
from quarterdeck_agent.tape import CURRENT, Owner, Place, Tape, text_of

DEPLOYMENT_CAP = 1 << 30
POLL = 0.2
FULL_LOOK = 5
"""Every so many polls all tapes are looked at and new ones looked for; in between only those written lately."""

LATELY = 600.0
MAX_BEHIND = 2 << 20
KEEP_BEHIND = 256 << 10
"""A follower more than `MAX_BEHIND` bytes behind a replica is moved on to its last `KEEP_BEHIND` bytes."""

BATCH = 256
BATCH_TIME = 0.05
MAX_TAIL = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a reader asked for."""

    deployment: str
    revision: int | None
    replica: str | None
    since: datetime | None
    pattern: Pattern

    def wants(self, owner: Owner) -> bool:
        return self.revision in (None, owner.revision) and self.replica in (None, owner.replica)

    def take(self, tape: Tape, raws: Sequence[bytes]) -> list[LogLine]:
        lines = [tape.parse(raw) for raw in raws if self.pattern.matches(text_of(raw))]
        return lines if self.since is None else [line for line in lines if line.at >= self.since]


class LogStore:
    """Reads and prunes `folder/{deployment}/{revision}/{replica}/`."""

    def __init__(self, folder: Path, clock: Clock | None = None, *, cap: int = DEPLOYMENT_CAP) -> None:
        self._folder = folder
        self._clock = clock or SystemClock()
        self._cap = cap
        # Threads of its own: a slow disk or a busy reader takes none from the engine's calls.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="logs")
        self._watches: dict[str, _Watch] = {}

    def close(self) -> None:
        """Let go of the threads; readers still at work get an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def replica_folder(self, deployment: str, revision: int, replica: str) -> Path:
        """Where this replica's files lie; not made by asking."""
        if not _NAME.fullmatch(deployment) or not _NAME.fullmatch(replica) or revision < 0:
            raise NotFound(f"there are no logs of {replica!r}, revision {revision} of {deployment!r}")
        return self._folder / deployment / str(revision) / replica

    def deployments(self) -> tuple[str, ...]:
        """The deployments of which logs are kept, also those long removed."""
        return tuple(name for name in _folders(self._folder) if _NAME.fullmatch(name))

    def tapes(self, deployment: str) -> list[Tape]:
        """Every replica of this deployment that has a folder, the oldest revision first."""
        if not _NAME.fullmatch(deployment):
            raise NotFound(f"there are no logs of {deployment!r}", field="deployment")
        base = self._folder / deployment
        return [
            Tape(base / str(revision) / replica, Owner(deployment, revision, replica))
            for revision in sorted(int(name) for name in _folders(base) if name.isdecimal() and name.isascii())
            for replica in _folders(base / str(revision))
        ]

    async def lines(
        self,
        deployment: str,
        *,
        revision: int | None = None,
        replica: str | None = None,
        previous: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
        grep: str | None = None,
        regex: bool = False,
        follow: bool = False,
    ) -> AsyncGenerator[LogLine, None]:
        """Lines merged by time over all replicas asked for; the first step raises `NotFound` or `InvalidInput`.

        `previous` asks for the revision before `revision` (or before the newest); where there is none, for the
        replicas of that revision that came before its newest. `tail` counts lines that `grep` lets through, over all
        replicas together. `follow` goes on until the caller stops.
        """
        chosen = await self._run(lambda: pattern(grep, regex))
        try:
            wish = _Wish(deployment, revision, replica, since, chosen)
            tapes = await self._run(lambda: self._select(wish, previous))
            if not tapes and not follow and (revision is not None or replica is not None or previous):
                raise NotFound(
                    f"no such logs of {deployment} are kept", hint=f"qd history {deployment} lists its revisions"
                )
            await self._run(lambda: _position(tapes, wish, tail))
            history = _History(tapes, wish, self._clock.wall())
            # What a replica writes meanwhile is not among its last lines: they were counted off a moment ago.
            limit = None if tail is None or follow else max(0, min(tail, MAX_TAIL))
            given = 0
            while not history.finished and given != limit:
                for line in await self._run(history.batch):
                    if given == limit:
                        break
                    given += 1
                    yield line
            if follow:
                async for line in self._follow(wish, tapes, fixed=previous):
                    yield line
        finally:
            chosen.close()

    def last_lines(self, deployment: str, revision: int, replica: str | None, n: int) -> tuple[str, ...]:
        """The text of the last `n` lines, for a failure record. Blocking and quick; () where there are none."""
        wish = _Wish(deployment, revision, replica, None, Everything())
        newest = heapq.nlargest(
            n,
            (
                (line.at, -number, line.text)
                for tape in self.tapes(deployment)
                if wish.wants(tape.owner)
                for number, line in enumerate(tape.parse(entry.raw) for entry in islice(tape.backwards(), n))
            ),
        )
        return tuple(text for _, _, text in reversed(newest))

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _select(self, wish: _Wish, previous: bool) -> list[Tape]:
        tapes = [tape for tape in self.tapes(wish.deployment) if wish.replica in (None, tape.owner.replica)]
        if not previous:
            return [tape for tape in tapes if wish.wants(tape.owner)]
        numbers = sorted({tape.owner.revision for tape in tapes})
        current = wish.revision if wish.revision is not None else max(numbers, default=0)
        before = [number for number in numbers if number < current]
        if before:
            return [tape for tape in tapes if tape.owner.revision == before[-1]]
        same = sorted((tape for tape in tapes if tape.owner.revision == current), key=Tape.first_at)
        return same[:-1]

    # --- follow ------------------------------------------------------------------------------------------------

    async def _follow(self, wish: _Wish, tapes: list[Tape], *, fixed: bool) -> AsyncGenerator[LogLine, None]:
        known = {tape.owner: tape for tape in tapes}
        read: dict[Owner, _Signature] = {}
        watch = self._watches.get(wish.deployment)
        if watch is None:
            watch = self._watches[wish.deployment] = _Watch(self, wish.deployment)
        wake = watch.join()
        try:
            while True:
                wake.clear()
                changed = {owner: seen for owner, seen in watch.seen.items() if read.get(owner) != seen}
                busy = False
                batch: list[LogLine] = []
                for owner, seen in changed.items():
                    if owner not in known and not fixed and wish.wants(owner):
                        known[owner] = Tape(self.replica_folder(owner.deployment, owner.revision, owner.replica), owner)
                    read[owner] = seen
                    if owner in known:
                        lines, more = await self._run(partial(_catch_up, known[owner], wish))
                        batch += lines
                        if more:
                            busy = True
                            del read[owner]
                for line in sorted(batch, key=lambda line: line.at):
                    yield line
                if not busy:
                    await wake.wait()
        finally:
            watch.leave(wake)
            if not watch.joined:
                self._watches.pop(wish.deployment, None)

    # --- pruning -----------------------------------------------------------------------------------------------

    def prune(self, deployment: str, keep: Collection[int] = ()) -> int:
        """Remove whole replicas' logs, oldest revision first, until the deployment is under its cap; bytes removed.

        Revisions in `keep` (those that run) and the newest revision stay; their own rotation bounds them. Blocking.
        """
        sized = [(tape.owner, _size(self._path(tape.owner))) for tape in self.tapes(deployment)]
        over = sum(size for _, size in sized) - self._cap
        newest = max((owner.revision for owner, _ in sized), default=0)
        removed = 0
        for owner, size in sized:
            if removed >= over:
                break
            if owner.revision not in keep and owner.revision != newest:
                shutil.rmtree(self._path(owner), ignore_errors=True)
                removed += size
        self._forget_empty(deployment)
        return removed

    def remove(self, deployment: str) -> None:
        """Remove everything kept of a deployment. Blocking."""
        if _NAME.fullmatch(deployment):
            shutil.rmtree(self._folder / deployment, ignore_errors=True)

    def _path(self, owner: Owner) -> Path:
        return self.replica_folder(owner.deployment, owner.revision, owner.replica)

    def _forget_empty(self, deployment: str) -> None:
        for name in _folders(self._folder / deployment):
            if not _folders(self._folder / deployment / name):
                # rmdir refuses a folder that got something meanwhile, which is what we want.
                try:
                    (self._folder / deployment / name).rmdir()
                except OSError:
                    continue


# --- history ---------------------------------------------------------------------------------------------------


class _History:
    """What is on the tapes by now, merged by time. A tape is first read when its turn comes."""

    def __init__(self, tapes: list[Tape], wish: _Wish, until: datetime) -> None:
        self.finished = False
        self._merged = self._merge(tapes, wish, until)

    def batch(self) -> list[LogLine]:
        """The next lines; few or none when a search finds little, so that a reader who left is noticed soon."""
        ends = time.monotonic() + BATCH_TIME
        lines: list[LogLine] = []
        for line in self._merged:
            if line is not None:
                lines.append(line)
            if len(lines) >= BATCH or time.monotonic() > ends:
                return lines
        self.finished = True
        return lines

    def _merge(self, tapes: list[Tape], wish: _Wish, until: datetime) -> Iterator[LogLine | None]:
        heap: list[tuple[datetime, int, LogLine | None, Iterator[LogLine | None]]] = [
            (tape.first_at(), number, None, _to_now(tape, wish, until)) for number, tape in enumerate(tapes)
        ]
        heapq.heapify(heap)
        while heap:
            at, number, line, rest = heapq.heappop(heap)
            yield line
            try:
                following = next(rest)
            except StopIteration:
                continue
            heapq.heappush(heap, (at if following is None else following.at, number, following, rest))


def _to_now(tape: Tape, wish: _Wish, until: datetime) -> Iterator[LogLine | None]:
    """A tape's lines up to `until`, or its end; a `None` after each read.

    `until` bounds the reading where a replica writes as fast as we read.
    """
    while True:
        piece = tape.read()
        if piece.lost:
            yield tape.owner.line(tape.first_at(), "older lines were rotated away before they were read")
        lines = wish.take(tape, piece.lines)
        yield from lines
        if piece.end or (piece.lines and tape.parse(piece.lines[-1]).at > until):
            return
        yield None


def _position(tapes: list[Tape], wish: _Wish, tail: int | None) -> None:
    """Move every tape to where reading begins."""
    if tail is None:
        for tape in tapes if wish.since is not None else ():
            tape.seek(wish.since)  # type: ignore[arg-type]
        return
    count = max(0, min(tail, MAX_TAIL))
    newest: list[tuple[datetime, int, int, Place]] = []
    for index, tape in enumerate(tapes):
        newest += _newest(tape, wish, count, index)
    taken = heapq.nlargest(count, newest)
    for index, tape in enumerate(tapes):
        places = [(number, place) for _, number, owner, place in taken if owner == index]
        if places:
            tape.place = min(places, key=lambda entry: entry[0])[1]
        else:
            tape.to_end()


def _newest(tape: Tape, wish: _Wish, count: int, index: int) -> Iterator[tuple[datetime, int, int, Place]]:
    """The newest `count` matching lines of a tape as (time, minus their rank, index, place)."""
    found = 0
    for entry in tape.backwards() if count else ():
        if not wish.pattern.matches(text_of(entry.raw)):
            continue
        at = tape.parse(entry.raw).at
        if wish.since is not None and at < wish.since:
            return
        yield at, -found, index, entry.place
        found += 1
        if found == count:
            return


# --- follow ----------------------------------------------------------------------------------------------------


def _catch_up(tape: Tape, wish: _Wish) -> tuple[list[LogLine], bool]:
    """What is new on a tape, and whether there is more. A reader too far behind is moved on and told so."""
    lines: list[LogLine] = []
    if tape.place is not None and tape.behind() > MAX_BEHIND:
        dropped = tape.skip(KEEP_BEHIND)
        lines.append(tape.owner.line(tape.first_at(), f"dropped {dropped} lines: reading was too slow", dropped))
    piece = tape.read()
    if piece.lost:
        lines.append(tape.owner.line(tape.first_at(), "older lines were rotated away before they were read"))
    lines += wish.take(tape, piece.lines)
    return lines, not piece.end


_Signature = tuple[int, int]


@dataclass(slots=True)
class _Watch:
    """Looks for growth in one deployment's logs: a few `stat` calls a poll, however many follow."""

    store: LogStore
    deployment: str
    seen: dict[Owner, _Signature] = field(default_factory=dict)
    joined: set[asyncio.Event] = field(default_factory=set)
    _written: dict[Owner, float] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    def join(self) -> asyncio.Event:
        """An event that is set whenever something has changed."""
        wake = asyncio.Event()
        self.joined.add(wake)
        if self._task is None:
            self._look(everything=True)
            self._task = asyncio.create_task(self._poll())
        return wake

    def leave(self, wake: asyncio.Event) -> None:
        self.joined.discard(wake)
        if not self.joined and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _poll(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(POLL)
            turn += 1
            if self._look(everything=turn % FULL_LOOK == 0):
                for wake in self.joined:
                    wake.set()

    def _look(self, *, everything: bool) -> bool:
        before = dict(self.seen)
        now = time.time()
        if everything:
            owners = [tape.owner for tape in self.store.tapes(self.deployment)]
            for gone in self.seen.keys() - owners:
                del self.seen[gone]
        else:
            owners = [owner for owner in self.seen if now - self._written.get(owner, 0) < LATELY]
        for owner in owners:
            try:
                path = self.store.replica_folder(owner.deployment, owner.revision, owner.replica) / CURRENT
                facts = os.stat(path, follow_symlinks=False)  # noqa: PTH116
            except OSError:
                continue
            self.seen[owner] = (facts.st_ino, facts.st_size)
            self._written[owner] = facts.st_mtime
        return self.seen != before


# --- folders ---------------------------------------------------------------------------------------------------


def _folders(path: Path) -> list[str]:
    """The names of real folders in `path`, sorted; none where it is not there."""
    try:
        with os.scandir(path) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and _NAME.fullmatch(entry.name)
            )
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        with os.scandir(path) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0
