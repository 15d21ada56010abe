"""Printing a fleet's events as they come: a snapshot's things first, then each change, one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from quarterdeck_agent.protocol import DeploymentStatus, HostStatus, Operation
from quarterdeck_console import fleet, views
from quarterdeck_console.cli.call import Call
from quarterdeck_console.cli.envelope import plain
from quarterdeck_console.config import Host
from quarterdeck_console.fleet import FleetEvent

Watched = Literal["deployment", "operation"]
_KINDS = {"deployment": "DeploymentEvent", "operation": "OperationEvent"}


async def watch(call: Call, hosts: Sequence[Host], kind: Watched, wanted: Callable[[Any], bool]) -> None:
    """Print every thing of this kind, then every change, until interrupted."""
    lost: set[str] = set()
    async with contextlib.aclosing(fleet.subscribe_all(hosts, call.deadline)) as events:
        async for event in events:
            if event.error is not None:
                if event.host not in lost:
                    tell_lost(call, _KINDS[kind], event)
                lost.add(event.host)
                continue
            lost.discard(event.host)
            _show(call, kind, wanted, event)


def tell_lost(call: Call, kind: str, event: FleetEvent) -> None:
    """Say that a host's stream is lost; `kind` is that of the stream's other events."""
    assert event.error is not None
    if call.out.json:
        call.out.event(kind, "lost", {"host": event.host}, event.error)
    else:
        call.out.errors([event.error])


def _show(call: Call, kind: Watched, wanted: Callable[[Any], bool], event: FleetEvent) -> None:
    assert event.event is not None
    status, delta = event.event.status, event.event.delta
    if status is not None:
        things = _things(status, kind)
        for thing in things:
            if wanted(thing):
                _print(call, kind, "snapshot", event.host, thing)
    elif delta is None:
        if call.out.json:
            call.out.event(_KINDS[kind], "heartbeat", {"host": event.host})
    elif delta.kind == kind and delta.value is None:
        if call.out.json:
            call.out.event(_KINDS[kind], "removed", {"host": event.host, "key": delta.key})
        else:
            call.out.line(f"{_now()}  {event.host}  {delta.key} is gone")
            call.out.lines_now()
    elif delta.kind == kind and wanted(delta.value):
        _print(call, kind, "changed", event.host, delta.value)


def _things(status: HostStatus, kind: Watched) -> tuple[Any, ...]:
    return status.deployments if kind == "deployment" else tuple(reversed(status.operations))


def _print(call: Call, kind: Watched, type_: str, host: str, thing: DeploymentStatus | Operation) -> None:
    if call.out.json:
        call.out.event(_KINDS[kind], type_, plain(thing, host))
        return
    if isinstance(thing, DeploymentStatus):
        ready = f"{thing.replicas_ready}/{thing.replicas_wanted} ready"
        words = f"{thing.name}  {thing.state.value}  {thing.label}  {ready}  {thing.summary}"
    else:
        outcome = thing.detail or thing.summary
        words = f"{views.short(thing.id)}  {thing.kind} {thing.target}  {thing.state.value}  {outcome}"
    call.out.line(f"{_now()}  {host}  {words}".rstrip())
    call.out.lines_now()


def _now() -> str:
    return datetime.now(UTC).astimezone().strftime("%H:%M:%S")
