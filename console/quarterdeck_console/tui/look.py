"""Pure: finding things in the fleet's state by what a person names."""

from __future__ import annotations

from datetime import datetime

from quarterdeck_agent.protocol import DeploymentStatus, Traffic
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui.messages import Target


def deployment(fleet: FleetState, target: Target) -> DeploymentStatus | None:
    """A target's status as last seen."""
    host = fleet.hosts.get(target.host)
    if host is None or host.status is None:
        return None
    return next((each for each in host.status.deployments if each.name == target.name), None)


def targets(fleet: FleetState) -> tuple[Target, ...]:
    """Every deployment of every host."""
    return tuple(
        Target(host.name, each.name)
        for host in fleet.hosts.values()
        if host.status is not None
        for each in host.status.deployments
    )


def labels(fleet: FleetState) -> tuple[str, ...]:
    """The label of every version on any host, the newest first."""
    newest: dict[str, datetime] = {}
    for host in fleet.hosts.values():
        for version in host.status.versions if host.status is not None else ():
            newest[version.label] = max(version.created_at, newest.get(version.label, version.created_at))
    return tuple(sorted(newest, key=lambda label: newest[label], reverse=True))


def version_ids(host: HostState, reference: str) -> tuple[str, ...]:
    """The ids on a host that a label or the start of an id may mean."""
    known = host.status.versions if host.status is not None else ()
    return tuple(each.id for each in known if each.label == reference or each.id.startswith(reference))


def live_traffic(host: HostState, name: str, revision: int | None) -> Traffic | None:
    """What the gateway counted for the revision that serves."""
    if host.status is None:
        return None
    return next((each for each in host.status.traffic if (each.deployment, each.revision) == (name, revision)), None)
