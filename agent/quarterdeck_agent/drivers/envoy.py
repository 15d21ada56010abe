"""Drives the gateway: applies a configuration to Envoy make before break, and tells what Envoy confirmed and counts.

Never stops Envoy and never carries a request itself: the agent may end at any moment. What a cluster or an endpoint
has in flight is never forgotten: one that is no longer listed takes no new requests and stays until it is idle.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quarterdeck_agent.drivers.base import GatewaySeen, RoutingResources
from quarterdeck_agent.drivers.envoy_files import Json, digest
from quarterdeck_agent.drivers.envoy_process import EnvoyProcess, find_binary
from quarterdeck_agent.drivers.envoy_stats import (
    ACTIVITY,
    LATENCY,
    TRAFFIC,
    Bins,
    ClusterStats,
    Latencies,
    Readings,
    answered_requests,
    cluster_activity,
    cluster_stats,
    parse_endpoints,
    parse_histograms,
    parse_stats,
)
from quarterdeck_agent.errors import GatewayError
from quarterdeck_agent.failpoints import failpoint

__all__ = ["ClusterStats", "EnvoyGateway", "find_binary"]

_VERSIONS = r"(\.version_text|\.update_rejected|\.update_failure|^cluster_manager\.warming_clusters)$"
_VERSION_OF = {
    "cds": "cluster_manager.cds.version_text",
    "lds": "listener_manager.lds.version_text",
    "rds": "http.gateway.rds.deployments.version_text",
}
_CONFIRM_EVERY = 0.005
_MERGED = 3.0  # seconds after the last answer until it stands in the histograms for certain
_SETTLED = 1.0  # seconds after a change until idle means idle: Envoy's workers follow its main thread


class EnvoyGateway:
    """`base.Gateway` on Envoy. `folder` is its own (0700): resource files, bootstrap, sockets, logs.

    `concurrency` is the number of Envoy's worker threads. The limits on requests are exact with one, which carries
    some 25,000 small requests a second; more workers each keep connections of their own. With `supervised` the
    process is somebody else's (systemd) and only waited for. `deadline` seconds bound each start and each apply.
    """

    def __init__(
        self,
        folder: Path,
        binary: str,
        host: str,
        port: int,
        *,
        concurrency: int = 1,
        supervised: bool = False,
        deadline: float = 15.0,
    ) -> None:
        folder = folder.absolute()
        self._process = EnvoyProcess(folder, binary, concurrency=concurrency, supervised=supervised, deadline=deadline)
        self._admin = self._process.admin
        self._files = self._process.files
        self._host, self._port = host, port
        self._deadline = deadline
        self._lock = asyncio.Lock()
        self._latencies = Latencies()
        self._answered: dict[str, int] | None = None
        self._answered_at = 0.0
        self._budgets: dict[str, int] | None = None
        self._listening: str | None = None
        self._listed: dict[str, Json] = {}
        self._changed = 0.0
        self._leaving = False
        self.placeholder = str(folder / "nobody.sock")
        self.access_log = str(folder / "access.log")

    @property
    def url(self) -> str:
        """Where consumers reach the gateway."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process that serves now; `None` when there is none."""
        return self._admin.server_pid()

    def prepare(self) -> tuple[str, ...]:
        """Write what Envoy needs to start; its command line, to run in the foreground (a systemd unit)."""
        return self._process.prepare()

    def command(self) -> tuple[str, ...]:
        """The command line that `prepare` gives; nothing is written."""
        return self._process.command()

    async def ensure(self) -> None:
        """Adopt the gateway that runs in the folder, or start one that outlives the agent. Raises `GatewayError`."""
        async with self._lock:
            await self._process.ensure()

    async def close(self) -> None:
        """Nothing to let go of: every question has its own connection. The gateway runs on."""

    # --- the configuration -----------------------------------------------------------------------------------

    async def apply(self, resources: RoutingResources) -> None:
        """Write the configuration, make before break, and return once Envoy has confirmed it.

        First the clusters and endpoints, old and new together, then the routes; what is no longer listed goes with a
        later `observe`, when it is idle. Raises `GatewayError` with Envoy's own reason when it refuses, and puts the
        files back that it refused.
        """
        async with self._lock:
            ends = time.monotonic() + self._deadline
            listeners, clusters = self._located(resources)
            self._leaving = False  # until this is through, nothing is let go of
            listed = {str(assignment["cluster_name"]): assignment for assignment in resources.endpoints}
            leaving = [old for old in self._files.resources("cds") if old["name"] not in listed]
            endpoints = {
                name: _with_leaving(item, self._files.resources(f"eds-{name}")) for name, item in listed.items()
            }
            for name, assignment in endpoints.items():
                self._files.write_if_changed(f"eds-{name}", digest(assignment), [assignment])
            confirmed = {f"cluster.{name}.version_text": digest(item) for name, item in endpoints.items()}
            await self._change({"cds": (resources.digest, [*clusters, *leaving])}, confirmed, ends)
            failpoint("gateway.clusters")
            self._budgets = None
            self._listening = digest(listeners)
            routed = {"rds": (resources.digest, resources.routes), "lds": (self._listening, listeners)}
            await self._change(routed, {}, ends)
            self._listed, self._changed = listed, time.monotonic()
            self._leaving = bool(leaving) or endpoints != listed

    async def observe(self) -> GatewaySeen:
        """The digest that Envoy confirmed as a whole, and what runs or waits per cluster and per endpoint."""
        async with self._lock:
            readings = await self._stats(f"{_VERSIONS}|{ACTIVITY}")
            activity = cluster_activity(readings, self._retry_budgets())
            active = {name: seen.active for name, seen in activity.items()}
            # Which endpoint has them is a long answer, and where there is nothing in flight an idle one.
            requests = parse_endpoints(await self._admin.get("/clusters"), activity) if any(active.values()) else {}
            if self._leaving and time.monotonic() - self._changed > _SETTLED:
                self._leaving = self._tidy(active, requests)
        return GatewaySeen(self._confirmed_digest(readings), active, self._process.version, requests)

    def _confirmed_digest(self, readings: Readings) -> str | None:
        routes, clusters, listeners = (readings.texts.get(_VERSION_OF[kind]) for kind in ("rds", "cds", "lds"))
        if self._listening is None:
            self._listening = self._files.version("lds")
        return routes if routes == clusters and listeners == self._listening else None

    def _located(self, resources: RoutingResources) -> tuple[list[Json], list[Json]]:
        """Listeners and clusters, told where their routes and endpoints are."""

        def locate(value: Json) -> Json:
            return {**value, "config_source": self._files.source("rds")} if "route_config_name" in value else value

        listeners: list[Json] = json.loads(json.dumps(resources.listeners), object_hook=locate)
        clusters: list[Json] = []
        for cluster in resources.clusters:
            source = self._files.source(f"eds-{cluster['name']}")
            clusters.append({**cluster, "eds_cluster_config": {"eds_config": source}})
        return listeners, clusters

    async def _change(
        self, files: dict[str, tuple[str, Sequence[Json]]], confirmed: dict[str, str], ends: float
    ) -> None:
        """Write these files (each with its version) and wait until Envoy tells their and the `confirmed` versions."""
        before = await self._stats(_VERSIONS)
        mark = self._process.log_size()
        undo = {}
        for kind, (version, content) in files.items():
            confirmed = {**confirmed, _VERSION_OF[kind]: version}
            if before.texts.get(_VERSION_OF[kind]) != version or self._files.version(kind) != version:
                undo[kind] = self._files.text(kind)
                self._files.write(kind, version, content)
        try:
            await self._until_confirmed(confirmed, before, mark, ends)
        except GatewayError:
            for kind, text in undo.items():
                if text:
                    self._files.restore(kind, text)
            raise

    async def _until_confirmed(self, versions: dict[str, str], before: Readings, mark: int, ends: float) -> None:
        while True:
            readings = await self._stats(_VERSIONS)
            waiting = [name for name, version in versions.items() if readings.texts.get(name) != version]
            if not waiting and not readings.numbers.get("cluster_manager.warming_clusters"):
                return
            if refused := readings.refused_since(before):
                reason = self._process.last_words(mark) or ", ".join(refused)
                raise GatewayError(f"the gateway refused its configuration: {reason}", hint=self._mend(reason))
            if time.monotonic() >= ends:
                raise GatewayError(
                    f"the gateway has not taken {waiting or ['its clusters']} over in {self._deadline:g} s",
                    hint=f"look into {self._process.log}",
                )
            await asyncio.sleep(_CONFIRM_EVERY)

    def _mend(self, reason: str) -> str:
        if "cannot bind" in reason or "Address already in use" in reason:
            return f"another program has {self._host}:{self._port}; end it, or give the gateway another port"
        return f"look into {self._process.log}"

    def _tidy(self, active: dict[str, int], requests: dict[str, int]) -> bool:
        """Let go of what is not listed any more and has nothing in flight; whether something has to stay."""
        listed = self._listed
        clusters = self._files.resources("cds")
        kept = [cluster for cluster in clusters if cluster["name"] in listed or active.get(str(cluster["name"]), 0)]
        if len(kept) < len(clusters):
            self._files.write("cds", self._files.version("cds") or "", kept)
        self._files.forget_endpoints(str(cluster["name"]) for cluster in kept)
        stays = len(kept) > len(listed)
        for name, assignment in listed.items():
            now = _with_leaving(assignment, self._files.resources(f"eds-{name}"), requests)
            stays = stays or now != assignment
            self._files.write_if_changed(f"eds-{name}", digest(now), [now])
        return stays

    # --- figures ---------------------------------------------------------------------------------------------

    async def stats(self) -> dict[str, ClusterStats]:
        """Per cluster: counters since it exists, gauges now, latencies since the last call (of this object)."""
        readings = await self._stats(f"{TRAFFIC}|{ACTIVITY}")
        activity = cluster_activity(readings, self._retry_budgets())
        return cluster_stats(readings, activity, await self._new_latencies(readings))

    async def _new_latencies(self, readings: Readings) -> dict[str, Bins]:
        """What the histograms gained since the last call. They are not asked for while nothing is answered.

        Envoy merges its workers' histograms once a second, so they follow the counters with a delay.
        """
        answered, now = answered_requests(readings), time.monotonic()
        if answered != self._answered:
            self._answered, self._answered_at = answered, now
        if now - self._answered_at > _MERGED:
            return {}
        raw = await self._admin.get(f"/stats?format=json&histogram_buckets=detailed&filter={quote(LATENCY, safe='')}")
        return self._latencies.since(parse_histograms(raw))

    async def rotate_access_log(self, largest: int) -> bool:
        """Once the access log has `largest` bytes, rename it to `access.log.1` and let Envoy begin a new one."""
        if not _set_aside(Path(self.access_log), largest):
            return False
        await self._admin.reopen_logs()
        return True

    async def _stats(self, pattern: str) -> Readings:
        return parse_stats(await self._admin.get(f"/stats?filter={quote(pattern, safe='')}"))

    def _retry_budgets(self) -> dict[str, int]:
        if self._budgets is None:
            self._budgets = {str(item["name"]): _retry_budget(item) for item in self._files.resources("cds")}
        return self._budgets


def _set_aside(path: Path, largest: int) -> bool:
    if not path.exists() or path.stat().st_size < largest:
        return False
    path.replace(f"{path}.1")
    return True


def _retry_budget(cluster: Json) -> int:
    breakers = cluster.get("circuit_breakers")
    thresholds = breakers.get("thresholds") if isinstance(breakers, dict) else None
    return int(thresholds[0].get("max_retries", 3)) if thresholds else 3


def _with_leaving(listed: Json, before: Sequence[Json], requests: dict[str, int] | None = None) -> Json:
    """The endpoints as listed, then those that were there before, draining: they get nothing new and stay visible.

    With `requests` (per `ip:port`) only those that still have some.
    """
    wanted = _endpoints(listed)
    addresses = [item["endpoint"] for item in wanted]
    leaving = []
    for item in _endpoints(before[0]) if before else []:
        address = item["endpoint"].get("address", {}).get("socket_address")
        if address is None or item["endpoint"] in addresses:
            continue
        if requests is None or requests.get(f"{address['address']}:{address['port_value']}", 0):
            leaving.append({**item, "health_status": "DRAINING"})
    return {**listed, "endpoints": [{"lb_endpoints": [*wanted, *leaving]}]}


def _endpoints(assignment: Json) -> list[dict[str, Any]]:
    localities: Any = assignment.get("endpoints") or [{}]
    found: list[dict[str, Any]] = localities[0].get("lb_endpoints", [])
    return found
