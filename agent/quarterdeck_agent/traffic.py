"""Which revision gets a deployment's requests, and which replicas may answer them. Pure: wanted × seen → routes.

What the gateway's own configuration then looks like stands in `routing.py`.
"""

from __future__ import annotations

from quarterdeck_agent.counts import counts_wanted, given_up, rolling, surplus
from quarterdeck_agent.routing import Route, Target
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.wanted import Wanted, WantedDeployment, WantedRevision

Endpoints = tuple[tuple[str, int], ...]


def routes(wanted: Wanted, seen: Seen, now: float) -> tuple[Route, ...]:
    """A route for every deployment that has not been removed."""
    return tuple(route(d, seen, now) for d in wanted.deployments if not d.removing)


def route(d: WantedDeployment, seen: Seen, now: float) -> Route:
    """Where one deployment's requests go.

    During a hold they go to the target's cluster, which stays without endpoints until the target has passed its gate;
    if it fails, that cluster is kept and gets the restored replicas, so that nobody who waits there is lost.
    """
    if d.live is None:
        return Route(d.name, None, d.target.spec.limits, _kept(d, seen, (), now), stopped=True)
    if d.holding and rolling(d):
        waiting = Target(d.target.number, ())
        return Route(d.name, d.target.number, d.target.spec.limits, _kept(d, seen, (waiting,), now), holding=True)
    live = Target(d.live.number, ready_endpoints(d, d.live, seen, now))
    clusters = _kept(d, seen, (live,), now)
    closed = d.live.spec.stopped or (not live.endpoints and given_up(d.live, seen.boot_id, now))
    if closed:
        return Route(d.name, None, d.live.spec.limits, clusters, stopped=True)
    return Route(d.name, d.live.number, d.live.spec.limits, clusters, holding=d.holding)


def ready_endpoints(d: WantedDeployment, revision: WantedRevision, seen: Seen, now: float) -> Endpoints:
    """Addresses of a revision's ready replicas, without those about to be stopped."""
    mine = seen.of(d.name)
    leaving = {r.found.id for r in surplus(counts_wanted(d, seen, now), mine, seen)}
    return tuple(
        r.found.address
        for r in mine
        if r.ready and r.running and r.found.address and r.found.body == revision.body and r.found.id not in leaving
    )


def _kept(d: WantedDeployment, seen: Seen, main: tuple[Target, ...], now: float) -> tuple[Target, ...]:
    """The clusters that must exist: the main one, the warm one, and any that requests are still in."""
    numbers = {t.revision for t in main}
    result = list(main)
    if d.previous is not None and d.previous.number not in numbers:
        endpoints = ready_endpoints(d, d.previous, seen, now)
        if endpoints:
            numbers.add(d.previous.number)
            result.append(Target(d.previous.number, endpoints))
    answering = next((t.endpoints for t in main if t.endpoints), ())
    for number in sorted(_busy_revisions(d.name, seen) - numbers):
        result.append(Target(number, answering))
    return tuple(result)


def _busy_revisions(name: str, seen: Seen) -> set[int]:
    """Revisions of a deployment whose clusters have requests in them, running or held."""
    if seen.gateway is None:
        return set()
    busy = set()
    for cluster, active in seen.gateway.active.items():
        deployment, _, revision = cluster.rpartition(".")
        if deployment == name and active > 0 and revision.isdecimal():
            busy.add(int(revision))
    return busy
