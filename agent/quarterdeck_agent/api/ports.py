"""What the API needs of the other parts, as interfaces, and the bundle of parts that the chooser passes in.

The API only reads the board and the store and edits what is wanted through these; it never acts on a replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from quarterdeck_agent import protocol
from quarterdeck_agent.board import Board


class Changes(Protocol):
    """Edits of what is wanted. Called in a thread. `generation` is the one the caller saw, `None` for any.

    A repeated `operation` id returns the first operation and changes nothing. Raises `InvalidInput`, `NotFound`,
    `Conflict` (with the winner's operation).
    """

    def preview(self, kind: protocol.ChangeKind, name: str, request: protocol.AnyRequest) -> protocol.Preview: ...

    def change(
        self,
        kind: protocol.ChangeKind,
        name: str,
        request: protocol.AnyRequest,
        by: str,
        operation: str,
        generation: int | None = None,
    ) -> protocol.Operation: ...


class Pushes(Protocol):
    """How a bundle becomes a version and how a version goes. Called in a thread."""

    def plan(self, request: protocol.PushRequest) -> protocol.PushPlan:
        """Check the request and tell which bytes are still missing. Writes nothing."""

    def commit(self, request: protocol.PushRequest, by: str, operation: str) -> protocol.Version:
        """Make the version once every byte is there. Raises `InvalidInput`, `Conflict`."""

    def remove(self, reference: str, by: str, operation: str) -> None:
        """Forget a version. Raises `NotFound`, `Conflict` while it is in use."""


class Gpus(Protocol):
    """Changes of what is remembered of GPUs. Called in a thread."""

    def trust(self, uuid: str, request: protocol.ChangeRequest, by: str, operation: str) -> protocol.Operation:
        """What was with a GPU does not count any more. Raises `NotFound`, `InvalidInput`, `Conflict`."""


class Records(Protocol):
    """The store's reads. Called in a thread."""

    def revisions(self, deployment: str) -> tuple[protocol.Revision, ...]: ...

    def versions(self) -> tuple[protocol.Version, ...]: ...

    def version(self, reference: str) -> protocol.Version: ...

    def operations(self, limit: int = 100, target: str | None = None) -> tuple[protocol.Operation, ...]: ...

    def operation(self, operation: str) -> protocol.Operation: ...


class Blobs(Protocol):
    """Where uploaded bytes go."""

    def offset(self, sha256: str) -> int: ...

    async def write(self, sha256: str, size: int, offset: int, chunks: AsyncIterator[bytes]) -> object: ...


class Logs(Protocol):
    """The replicas' output, merged by time over the replicas asked for."""

    def lines(
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
    ) -> AsyncIterator[protocol.LogLine]:
        """The first step raises `NotFound` or `InvalidInput`."""


class Catalogue(Protocol):
    """The serving runtimes this host knows."""

    def list(self) -> tuple[protocol.Runtime, ...]: ...


class SeriesSource(Protocol):
    """Gauges over time. `since` leaves out what is older, `step` and `points` thin what there is."""

    async def names(self) -> tuple[protocol.SeriesName, ...]: ...

    async def series(
        self,
        name: str,
        key: str,
        since: datetime | None = None,
        *,
        step: float | None = None,
        points: int | None = None,
    ) -> protocol.Series | None: ...


async def no_checks() -> tuple[protocol.Check, ...]:
    """A doctor that looks at nothing."""
    return ()


def no_metrics() -> bytes:
    """An exposition without figures."""
    return b""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the routes reach. `stop` is set when the agent ends, so that streams end at once."""

    board: Board
    changes: Changes
    pushes: Pushes
    records: Records
    blobs: Blobs
    logs: Logs
    catalogue: Catalogue
    series: SeriesSource
    gpus: Gpus
    doctor: Callable[[], Awaitable[Sequence[protocol.Check]]] = no_checks
    gpu_doctor: Callable[[], Awaitable[Sequence[protocol.Check]]] = no_checks
    metrics: Callable[[], bytes] = no_metrics
    upload_size: int = 2**40
    stop: asyncio.Event = field(default_factory=asyncio.Event)
