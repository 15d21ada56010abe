"""Reads Envoy's statistics: pure functions from the admin endpoint's text to figures per cluster.

Source of the formats: envoyproxy.io, operations/admin, `GET /stats`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field

TRAFFIC = r"^cluster\..*\.[0-9]+\.(upstream_rq_completed|upstream_rq_5xx|upstream_rq_pending_overflow)$"
ACTIVITY = r"^cluster\..*\.[0-9]+\.(upstream_rq_(pending_)?active|circuit_breakers\.default\.remaining_retries)$"
LATENCY = r"^cluster\..*\.[0-9]+\.upstream_rq_time$"
_REFUSALS = (".update_rejected", ".update_failure")


@dataclass(frozen=True, slots=True)
class Readings:
    """One answer of `/stats`: numbers (counters and gauges) and texts by name."""

    numbers: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def refused_since(self, before: Readings) -> list[str]:
        """The counters of refused configurations that have risen."""
        counters = ((name, count) for name, count in self.numbers.items() if name.endswith(_REFUSALS))
        return [name for name, count in counters if count > before.numbers.get(name, 0)]


@dataclass(frozen=True, slots=True)
class Activity:
    """Requests of one cluster now: `running` at replicas (streams too), `queued` for one, `held` without any."""

    running: int = 0
    queued: int = 0
    held: int = 0

    @property
    def active(self) -> int:
        """All that would be lost if the cluster's replicas and waiting room went away."""
        return self.running + self.queued + self.held


@dataclass(frozen=True, slots=True)
class ClusterStats:
    """One cluster. Counters since it exists: `total` answered requests, `errors` those with 5xx, `refused` beyond the
    limits. Gauges now: `active` requests at replicas, `held` those that wait (queued, or for want of a replica).
    Latencies in seconds over the time since the last reading, `None` when nothing was answered in it.
    """

    total: int
    errors: int
    refused: int
    active: int
    held: int
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


Bins = dict[tuple[float, float], int]
"""Counts by (lower bound, width) in milliseconds."""


def parse_stats(raw: bytes) -> Readings:
    """The plain text of `/stats`: `name: 12`, `name: "text"`; histograms are left out."""
    readings = Readings()
    for line in raw.decode(errors="replace").splitlines():
        name, colon, value = line.rpartition(": ") if not line.endswith('"') else line.partition(": ")
        if not colon:
            continue
        if value.startswith('"'):
            readings.texts[name] = value[1:-1]
        elif value.isdigit():
            readings.numbers[name] = int(value)
    return readings


def parse_histograms(raw: bytes) -> dict[str, Bins]:
    """Cluster → all values so far, from `/stats?format=json&histogram_buckets=detailed`."""
    found: dict[str, Bins] = {}
    for entry in json.loads(raw).get("stats", ()):
        for detail in entry.get("histograms", {}).get("details", ()):
            name = _cluster_of(detail["name"], ".upstream_rq_time")
            if name is not None:
                bins = detail.get("totals", ())
                found[name] = {(item["lower_bound"], item["width"]): item["count"] for item in bins}
    return found


def parse_endpoints(raw: bytes, activity: dict[str, Activity]) -> dict[str, int]:
    """Requests per endpoint (`ip:port`), over all clusters, from the plain text of `/clusters`.

    A queued request belongs to one endpoint already, but Envoy does not tell which: it is counted with each of its
    cluster, so that none of them looks idle.
    """
    found: dict[str, int] = {}
    pieces = raw.decode(errors="replace").split("::rq_active::")  # one line of some twenty that each endpoint has
    for before, after in itertools.pairwise(pieces):
        cluster, _, endpoint = before.rpartition("\n")[2].partition("::")
        if not endpoint.startswith("/"):
            running = int(after.partition("\n")[0])
            found[endpoint] = found.get(endpoint, 0) + running + activity.get(cluster, Activity()).queued
    return found


def cluster_activity(readings: Readings, max_retries: dict[str, int]) -> dict[str, Activity]:
    """What runs and waits per cluster.

    Envoy has no gauge for requests that wait between two attempts to connect: they are what has been taken of the
    cluster's retries, less those of them that run by now.
    """
    found = {}
    for name, running in _by_cluster(readings, ".upstream_rq_active").items():
        queued = readings.numbers.get(f"cluster.{name}.upstream_rq_pending_active", 0)
        left = readings.numbers.get(f"cluster.{name}.circuit_breakers.default.remaining_retries")
        taken = 0 if left is None else max_retries.get(name, left) - left
        found[name] = Activity(running, queued, max(0, taken - running - queued))
    return found


def answered_requests(readings: Readings) -> dict[str, int]:
    """How many requests each cluster has answered since it exists."""
    return _by_cluster(readings, ".upstream_rq_completed")


def cluster_stats(
    readings: Readings, activity: dict[str, Activity], latencies: dict[str, Bins]
) -> dict[str, ClusterStats]:
    """All figures of every cluster that `activity` knows."""
    errors = _by_cluster(readings, ".upstream_rq_5xx")
    refused = _by_cluster(readings, ".upstream_rq_pending_overflow")
    found = {}
    for name, total in answered_requests(readings).items():
        now = activity.get(name, Activity())
        waiting = now.queued + now.held
        quantiles = [quantile(latencies.get(name, {}), part) for part in (0.5, 0.95, 0.99)]
        counts = (total, errors.get(name, 0), refused.get(name, 0), now.running, waiting)
        found[name] = ClusterStats(*counts, *quantiles)
    return found


class Latencies:
    """Remembers the last reading of the histograms, to tell what came since."""

    def __init__(self) -> None:
        self._last: dict[str, Bins] = {}

    def since(self, now: dict[str, Bins]) -> dict[str, Bins]:
        """What each histogram gained since the last call; all of it where it began anew meanwhile."""
        last, self._last = self._last, now
        return {name: _gained(bins, last.get(name, {})) for name, bins in now.items()}


def quantile(bins: Bins, part: float) -> float | None:
    """Seconds below which `part` (0..1) of the values lie, linear inside a bin; `None` for no values."""
    rank, seen = part * sum(bins.values()), 0
    for (lower, width), count in sorted(bins.items()):
        if count and seen + count >= rank:
            return (lower + width * max(0.0, rank - seen) / count) / 1000
        seen += count
    return None


def _gained(now: Bins, before: Bins) -> Bins:
    if any(now.get(place, 0) < count for place, count in before.items()):
        return now
    return {place: count - before.get(place, 0) for place, count in now.items()}


def _by_cluster(readings: Readings, suffix: str) -> dict[str, int]:
    named = ((_cluster_of(name, suffix), value) for name, value in readings.numbers.items())
    return {name: value for name, value in named if name is not None}


def _cluster_of(stat: str, suffix: str) -> str | None:
    return stat[len("cluster.") : -len(suffix)] if stat.startswith("cluster.") and stat.endswith(suffix) else None
