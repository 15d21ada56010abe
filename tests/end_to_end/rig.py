"""A real agent in a process of its own, with real replicas and a real Envoy, and everything ended afterwards.

`Agent` starts `qd-agent run` on private folders and a free port, can kill it with SIGKILL and start it again, runs `qd`
against it, and `Load` calls a deployment all the while and remembers every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import Engine
from quarterdeck_agent.drivers.container import network_name
from quarterdeck_agent.drivers.docker import DockerEngine
from quarterdeck_agent.drivers.envoy import EnvoyGateway
from quarterdeck_agent.drivers.process import ProcessEngine
from tests.images import docker

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], Any], what: str, deadline: float = 30.0) -> Any:
    """Wait for a condition to be true and give its value; fails with `what` after `deadline` seconds."""
    ends = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > ends:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Ran:
    """What one `qd` command did."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@dataclass
class Agent:
    """One host. `settings` are QUARTERDECK_* variables, without the prefix and in lower case.

    `wrapper` is a command that ends by executing the one behind it. `variables` are put into its environment as they
    are.
    """

    folder: Path
    engine: str = "process"
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    wrapper: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    @property
    def data_folder(self) -> Path:
        return self.folder / "data"

    @property
    def socket(self) -> Path:
        return self.run_folder / "agent.sock"

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    # --- its life ----------------------------------------------------------------------------------------------

    def start(self, **environment: str) -> Agent:
        """Start the agent and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", "quarterdeck_agent", "run"],
                cwd=ROOT,
                env=self.environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self.answers, f"the agent answers; its log:\n{self.log}")
        return self

    def environment(self) -> dict[str, str]:
        own = {
            "data_folder": str(self.data_folder),
            "run_folder": str(self.run_folder),
            "engine": self.engine,
            "gateway_port": str(self.port),
            **self.settings,
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("QUARTERDECK_")}
        path = os.pathsep.join((str(ROOT / "agent"), str(ROOT / "console"), str(ROOT)))
        named = kept | {"PYTHONPATH": path} | dict(self.variables)
        return named | {f"QUARTERDECK_{key.upper()}": value for key, value in own.items()}

    def answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the agent ended with {self.process.returncode}:\n{self.log}")
        try:
            return self.api("GET", "/v1/hello")[0] == 200
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def clear(self) -> None:
        """End the agent, its replicas and its gateway."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        instance = self.data_folder / "instance"
        if instance.exists():
            asyncio.run(_end_replicas(self.made_engine(instance.read_text().strip())))
            self._remove_network(instance.read_text().strip())
        if pid := self.gateway_pid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), "the gateway is gone")

    def _remove_network(self, instance: str) -> None:
        """A killed agent leaves its network, and Docker has addresses for some thirty."""
        if self.engine == "docker":
            url = self.environment().get("QUARTERDECK_DOCKER_URL", DOCKER)
            docker("network", "rm", network_name(instance), check=False, host=url)

    def made_engine(self, instance: str) -> Engine:
        if self.engine == "docker":
            return DockerEngine(self.environment().get("QUARTERDECK_DOCKER_URL", DOCKER), instance, SystemClock())
        return ProcessEngine(self.data_folder / "replicas", instance, SystemClock())

    def gateway_pid(self) -> int | None:
        return EnvoyGateway(self.data_folder / "gateway", "envoy", "127.0.0.1", self.port).pid

    # --- talking to it -----------------------------------------------------------------------------------------

    def api(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 30.0
    ) -> tuple[int, Any]:
        """One request to the API over its socket: status and decoded answer."""
        connection = _UnixConnection(str(self.socket), timeout)
        try:
            token = (self.run_folder / "token").read_text().strip()
            kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
            sent = {"Authorization": f"Bearer {token}", "Content-Type": kind, **(headers or {})}
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text[:1] in (b"{", b"[") else text
        finally:
            connection.close()

    def qd(self, *words: str, deadline: float = 120.0) -> Ran:
        """Run `qd` against this agent."""
        done = subprocess.run(
            [sys.executable, "-m", "quarterdeck_console", *words],
            cwd=ROOT,
            env=self.environment() | {"QUARTERDECK_HOST": f"unix://{self.socket}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=deadline,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def must(self, *words: str) -> Ran:
        """Run `qd`, which must succeed."""
        ran = self.qd(*words)
        assert ran.code == 0, f"qd {' '.join(words)} gave {ran.code}\n{ran.out}\n{ran.err}\n--- agent\n{self.log}"
        return ran

    def deployment(self, name: str) -> dict[str, Any]:
        """The deployment's status, as the API tells."""
        status, answer = self.api("GET", f"/v1/deployments/{name}")
        assert status == 200, answer
        found = answer["status"]
        assert isinstance(found, dict)
        return found

    def revisions(self, name: str) -> list[dict[str, Any]]:
        status, answer = self.api("GET", f"/v1/deployments/{name}/revisions")
        assert status == 200, answer
        return list(answer["items"] if isinstance(answer, dict) else answer)

    def until_settled(self, name: str, revision: int, deadline: float = 60.0) -> dict[str, Any]:
        """Wait until this revision is live and nothing is on its way."""

        def settled() -> dict[str, Any] | None:
            found = self.deployment(name)
            quiet = found["state"] in ("serving", "stopped") and found["live_revision"] == revision
            return found if quiet else None

        result = until(settled, f"revision {revision} of {name} is live", deadline)
        assert isinstance(result, dict)
        return result

    def call(self, name: str, body: Any = None, path: str = "/predict", timeout: float = 30.0) -> tuple[int, Any]:
        """One request to a deployment through the gateway."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", f"/{name}{path}", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text[:1] in (b"{", b"[") else text
        finally:
            connection.close()


DOCKER = "unix:///var/run/docker.sock"


@contextlib.contextmanager
def agent(folder: Path, engine: str = "process", **settings: str) -> Iterator[Agent]:
    """A running agent that is cleared away afterwards."""
    made = Agent(folder, engine, settings)
    try:
        yield made.start()
    finally:
        made.clear()


class Load:
    """Calls a deployment from several threads until left, and keeps what every call came to."""

    def __init__(self, agent: Agent, name: str, threads: int = 4, pause: float = 0.005, timeout: float = 60.0) -> None:
        self._agent, self._name, self._pause, self._timeout = agent, name, pause, timeout
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self._lock = threading.Lock()
        self.answers: list[tuple[float, Any]] = []
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: self.answers or self.failures, "the load has begun")
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(self._timeout + 5)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                status, answer = self._agent.call(self._name, {"x": 1}, timeout=self._timeout)
                wrong = None if status == 200 else f"{status} {answer!r}"
            except (OSError, http.client.HTTPException) as error:
                wrong, answer = repr(error), None
            with self._lock:
                if wrong is None:
                    self.answers.append((time.monotonic(), answer))
                else:
                    self.failures.append(wrong)
            time.sleep(self._pause)

    def count(self, field: str = "version") -> Counter[Any]:
        """How many answers carried which value of a field."""
        with self._lock:
            return Counter(answer[field] for _, answer in self.answers)


async def _end_replicas(engine: Engine) -> None:
    for found in (await engine.inventory()).replicas:
        await engine.stop(found, 0.0)
        await engine.remove(found)
    await engine.close()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
