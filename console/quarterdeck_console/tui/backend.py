"""What the session needs from whoever talks to hosts: real agents, or a simulated fleet in tests and pictures."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from quarterdeck_console.tui.messages import LogEntry, LogWish, PushCame, Target, Wish

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import DeploymentDetail, Operation, Preview, Series
    from quarterdeck_console.fleet import FleetEvent


class Backend(Protocol):
    """Every method raises `ConsoleError`; every generator may be closed at any time."""

    def events(self) -> AsyncGenerator[FleetEvent, None]:
        """Every host's events, for ever."""
        ...

    async def detail(self, target: Target) -> DeploymentDetail:
        """One deployment in full."""
        ...

    async def series(self, host: str, name: str, key: str, since: datetime | None, points: int | None) -> Series:
        """One gauge since a time, in about so many points."""
        ...

    async def preview(self, wish: Wish, target: Target) -> Preview:
        """What the wish would do to one of its targets."""
        ...

    def change(self, wish: Wish, target: Target) -> AsyncGenerator[Operation, None]:
        """Make the wish true for one target: its operation each time it changes, to its end. Raises when it failed."""
        ...

    def logs(self, wish: LogWish) -> AsyncGenerator[LogEntry, None]:
        """Lines of all targets as they come."""
        ...

    def push(self, hosts: tuple[str, ...], folder: str, allow_pickle: bool) -> AsyncGenerator[PushCame, None]:
        """Send a bundle to hosts."""
        ...

    async def remove_version(self, host: str, id: str) -> None:
        """Have a host forget a version. Raises while the host needs it."""
        ...
