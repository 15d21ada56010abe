"""What the console has seen of the fleet, frozen, and the pure functions that fold one more event into it.

A host that is lost keeps its last values and says since when: a row never vanishes because a host is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from quarterdeck_agent.protocol import Delta, HostStatus, Revision

Connection = Literal["connecting", "live", "lost"]

OPERATIONS_KEPT = 200


@dataclass(frozen=True, slots=True)
class HostState:
    """One host as last seen. `since` is when `connection` became what it is, `seen_at` the last word from it."""

    name: str
    connection: Connection = "connecting"
    since: datetime | None = None
    seen_at: datetime | None = None
    error: str | None = None
    error_code: str | None = None
    status: HostStatus | None = None
    revisions: dict[str, Revision] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FleetState:
    """Every host the console knows, in the fleet file's order."""

    hosts: dict[str, HostState] = field(default_factory=dict)

    @staticmethod
    def of(names: tuple[str, ...]) -> FleetState:
        """A fleet of which nothing has been heard yet."""
        return FleetState({name: HostState(name) for name in names})


def snapshot(fleet: FleetState, host: str, status: HostStatus, now: datetime) -> FleetState:
    """Everything about a host, anew."""
    return _put(fleet, host, lambda old: _live(replace(old, status=status), now))


def delta(fleet: FleetState, host: str, change: Delta, now: datetime) -> FleetState:
    """One fact that changed. Before a snapshot there is nothing to change; a kind not known here changes nothing."""
    return _put(fleet, host, lambda old: _live(_changed(old, change), now))


def deltas(fleet: FleetState, host: str, changes: Sequence[Delta], now: datetime) -> FleetState:
    """Many facts of one host at once: the same as one after another, at the price of one."""
    return _put(fleet, host, lambda old: _live(_all_changed(old, changes), now))


def heartbeat(fleet: FleetState, host: str, now: datetime) -> FleetState:
    """The host is there and has nothing to say."""
    return _put(fleet, host, lambda old: _live(old, now))


def lost(fleet: FleetState, host: str, error: str, now: datetime, code: str = "unreachable") -> FleetState:
    """The host is gone; what it said last stays."""

    def gone(old: HostState) -> HostState:
        since = old.since if old.connection == "lost" else now
        return replace(old, connection="lost", since=since, error=error, error_code=code)

    return _put(fleet, host, gone)


def _put(fleet: FleetState, host: str, change: Callable[[HostState], HostState]) -> FleetState:
    old = fleet.hosts.get(host) or HostState(host)
    return FleetState({**fleet.hosts, host: change(old)})


def _live(state: HostState, now: datetime) -> HostState:
    since = state.since if state.connection == "live" else now
    return replace(state, connection="live", since=since, seen_at=now, error=None, error_code=None)


def _all_changed(state: HostState, changes: Sequence[Delta]) -> HostState:
    """Changes of the kinds that come by the second are gathered by kind; the others are rare."""
    of_kind: dict[str, dict[str, Delta]] = {}
    for change in changes:
        if change.kind in _GATHERED and change.value is not None:
            of_kind.setdefault(change.kind, {})[change.key] = change
        else:
            state = _changed(state, change)
            of_kind.get(change.kind, {}).pop(change.key, None)
    if state.status is None or not of_kind:
        return state
    fields: dict[str, Any] = {}
    for kind, newest in of_kind.items():
        if kind == "gauges":
            fields["gauges"] = newest[""].value if "" in newest else next(iter(newest.values())).value
            continue
        name, key, _ = _FIELDS[kind]
        kept = tuple(
            newest.pop(key(item)).value if key(item) in newest else item for item in getattr(state.status, name)
        )
        fields[name] = kept + tuple(change.value for change in newest.values())
    return replace(state, status=replace(state.status, **fields))


_GATHERED = frozenset({"gauges", "gpu", "gpu_use", "traffic", "replica_gauges"})


def _changed(state: HostState, change: Delta) -> HostState:
    status = state.status
    if change.kind == "revision":
        revisions = {key: value for key, value in state.revisions.items() if key != change.key}
        return replace(state, revisions={**revisions, change.key: change.value} if change.value else revisions)
    if status is None:
        return state
    if change.kind in ("info", "gauges"):
        if change.kind == "info" and change.value is None:
            return state
        return replace(state, status=replace(status, **{change.kind: change.value}))
    if change.kind not in _FIELDS:
        return state
    name, key, newest_first = _FIELDS[change.kind]
    items = _merged(getattr(status, name), change, key, newest_first)
    if change.kind == "operation":
        items = items[:OPERATIONS_KEPT]
    changed: dict[str, Any] = {name: items}
    return replace(state, status=replace(status, **changed))


def _merged(items: tuple[Any, ...], change: Delta, key: Callable[[Any], str], newest_first: bool) -> tuple[Any, ...]:
    if change.value is None:
        return tuple(item for item in items if key(item) != change.key)
    for place, item in enumerate(items):
        if key(item) == change.key:
            return (*items[:place], change.value, *items[place + 1 :])
    return (change.value, *items) if newest_first else (*items, change.value)


_FIELDS: dict[str, tuple[str, Callable[[Any], str], bool]] = {
    "part": ("parts", lambda part: part.name, False),
    "gpu": ("gpus", lambda gpu: gpu.uuid, False),
    "gpu_facts": ("gpu_facts", lambda facts: facts.uuid, False),
    "gpu_use": ("gpu_uses", lambda use: use.uuid, False),
    "deployment": ("deployments", lambda deployment: deployment.name, False),
    "traffic": ("traffic", lambda traffic: f"{traffic.deployment}/{traffic.revision}", False),
    "replica_gauges": ("replica_gauges", lambda gauges: gauges.replica, False),
    "operation": ("operations", lambda operation: operation.id, True),
    "version": ("versions", lambda version: version.id, True),
}
