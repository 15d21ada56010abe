"""What is true for the whole run and every screen may know: who the hosts are, what may be done, what time it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from quarterdeck_console.config import Fleet, Host
from quarterdeck_console.tui.history import History


def wall_clock() -> datetime:
    """Now, aware, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """Given to every screen when it is made. `history` is written by the session only."""

    fleet: Fleet
    read_only: bool = False
    now: Callable[[], datetime] = wall_clock
    history: History = field(default_factory=History)

    @property
    def hosts(self) -> Mapping[str, Host]:
        """The hosts by name, in the fleet file's order."""
        return {host.name: host for host in self.fleet.hosts}

    def protected(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of these hosts that want their name typed before a change."""
        known = self.hosts
        return tuple(dict.fromkeys(name for name in names if name in known and known[name].protected))
