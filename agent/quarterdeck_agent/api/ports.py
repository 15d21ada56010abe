"""What the API needs of the other parts, as interfaces, and the bundle of parts that the chooser passes in.

The API only reads the board and the store and edits what is wanted through these; it never acts on a replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from quarterdeck_agent import protocol
from quarterdeck_agent.board import Board
from quarterdeck_agent.principal import Principal

ChangeKind = Literal["deploy", "rollback", "scale", "restart", "stop", "remove"]
ChangeBody = protocol.DeployRequest | protocol.RollbackRequest | protocol.ScaleRequest | protocol.ChangeRequest


class Changes(Protocol):
    """Edits of what is wanted. Called in a thread. `generation` is the one the caller saw, `None` for any.

    A repeated `operation_id` returns the first operation and changes nothing. Raises `InvalidInput`, `NotFound`,
    `Conflict` (with the winner's operation).
    """

    def preview(
        self, kind: ChangeKind, name: str, request: ChangeBody, principal: Principal, generation: int | None
    ) -> protocol.Preview: ...

    def deploy(
        self,
        name: str,
        request: protocol.DeployRequest,
        principal: Principal,
        operation_id: str,
        generation: int | None,
    ) -> protocol.Operation: ...

    def rollback(
        self,
        name: str,
        request: protocol.RollbackRequest,
        principal: Principal,
        operation_id: str,
        generation: int | None,
    ) -> protocol.Operation: ...

    def scale(
        self, name: str, request: protocol.ScaleRequest, principal: Principal, operation_id: str, generation: int | None
    ) -> protocol.Operation: ...

    def restart(
        self,
        name: str,
        request: protocol.ChangeRequest,
        principal: Principal,
        operation_id: str,
        generation: int | None,
    ) -> protocol.Operation: ...

    def stop(
        self,
        name: str,
        request: protocol.ChangeRequest,
        principal: Principal,
        operation_id: str,
        generation: int | None,
    ) -> protocol.Operation: ...

    def remove(
        self,
        name: str,
        request: protocol.ChangeRequest,
        principal: Principal,
        operation_id: str,
        generation: int | None,
    ) -> protocol.Operation: ...


class Pushes(Protocol):
    """How a bundle becomes a version. Called in a thread."""

    def plan(self, request: protocol.PushRequest) -> protocol.PushPlan:
        """Check the request and tell which bytes are still missing. Writes nothing."""

    def commit(self, request: protocol.PushRequest, principal: Principal, operation_id: str) -> protocol.Version:
        """Make the version once every byte is there. Raises `InvalidInput`, `Conflict`."""


class Records(Protocol):
    """The store's reads, and the one edit that is not a change of a deployment. Called in a thread."""

    def deployment_names(self) -> Sequence[str]: ...

    def revisions(self, deployment: str) -> tuple[protocol.Revision, ...]: ...

    def versions(self) -> tuple[protocol.Version, ...]: ...

    def version(self, ref: str) -> protocol.Version: ...

    def remove_version(self, id: str) -> None: ...

    def operations(self, limit: int, target: str | None = None) -> tuple[protocol.Operation, ...]: ...

    def operation(self, id: str) -> protocol.Operation: ...


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
        follow: bool = False,
    ) -> AsyncIterator[protocol.LogLine]: ...


class Catalogue(Protocol):
    """The serving runtimes this host knows."""

    def list(self) -> tuple[protocol.Runtime, ...]: ...


class SeriesSource(Protocol):
    """The hour of gauges kept in memory. Called on the loop; `since` leaves out what is older."""

    def series(self, name: str, key: str, since: datetime | None) -> protocol.Series | None: ...


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
    doctor: Callable[[], Awaitable[Sequence[protocol.Check]]] = no_checks
    metrics: Callable[[], bytes] = no_metrics
    upload_size: int = 2**40
    upload_chunk: int = 2**20
    stop: asyncio.Event = field(default_factory=asyncio.Event)
