"""What tests of faults share: arming failpoints, and what must be true of a host once it has come to rest."""

from __future__ import annotations

import contextlib
import http.client
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.rig import Agent, Load, until

SERVER = b"server.py"
ENDED = ("succeeded", "failed", "superseded", "cancelled")


@dataclass(frozen=True)
class Faults:
    """The failpoints of one agent, which it must be started with."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Faults:
        folder.mkdir(parents=True)
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        return {"QUARTERDECK_FAILPOINTS": str(self.folder)}

    def arm(self, point: str) -> None:
        (self.folder / "armed").write_text(point)

    def reached(self) -> list[str]:
        """The points reached since the last call, each once, in order."""
        trace = self.folder / "reached"
        points = trace.read_text().split() if trace.exists() else []
        trace.unlink(missing_ok=True)
        return list(dict.fromkeys(points))

    def start(self, host: Agent) -> Agent:
        return host.start(**self.environment)

    def until_killed(self, host: Agent, point: str, deadline: float = 40.0) -> None:
        """Wait until the agent died at the armed point."""
        assert host.process is not None
        until(lambda: host.process is None or host.process.poll() is not None, f"the agent dies at {point}", deadline)
        assert host.process.returncode == -signal.SIGKILL, host.log


def ask(host: Agent, method: str, path: str, body: Any = None) -> tuple[int, Any] | None:
    """A request to an agent that may die meanwhile; `None` when no answer came."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return host.api(method, path, body)
    return None


def servers(host: Agent) -> dict[int, str]:
    """The processes of models that run out of this agent's folders, whether it knows of them or not: pid, version."""
    found = {}
    inside = str(host.data_folder).encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if len(words) > 1 and words[1].startswith(inside) and words[1].endswith(SERVER):
                found[int(folder.name)] = words[1].decode()
    return found


def at_rest(host: Agent, name: str, deadline: float = 45.0) -> str:
    """Wait until the newest revision is live, alone and whole; the version it answers with.

    Nothing is on its way, every operation has ended, no process runs that the agent does not list, and the gateway
    sends requests to the live revision.
    """
    last: dict[str, Any] = {}

    def quiet() -> bool:
        newest = max(revision["number"] for revision in host.revisions(name))
        status = host.deployment(name)
        running = servers(host)
        last.update(status=status, servers=running)
        ready = [replica for replica in status["replicas"] if replica["state"] == "ready"]
        whole = len(ready) == len(status["replicas"]) == status["replicas_wanted"] == len(running)
        return bool(whole and status["state"] == "serving" and status["live_revision"] == newest)

    try:
        until(quiet, "the host comes to rest", deadline)
        until(lambda: all(o["state"] in ENDED for o in operations(host)), "every operation ends")
    except AssertionError as error:
        raise AssertionError(f"{error}; {last}; {operations(host)[:3]}\n{host.log[-4000:]}") from error
    version = str(last["status"]["label"]).partition(":")[2]
    answer = host.call(name)
    assert answer[1]["version"] == version, (answer, last)
    return version


def operations(host: Agent) -> list[dict[str, Any]]:
    status, answer = host.api("GET", "/v1/operations")
    assert status == 200, answer
    return list(answer["items"] if isinstance(answer, dict) else answer)


def copies(host: Agent, label: str, count: int) -> list[str]:
    """More versions of the same files as one that was pushed, each answering with its own version."""
    status, version = host.api("GET", f"/v1/versions/{label}")
    assert status == 200, version
    labels = []
    for number in range(count):
        config = version["config"] | {"version": f"copy{number}"}
        config["env"] = config["env"] | {"MODEL_VERSION": config["version"]}
        status, answer = host.api("POST", "/v1/versions", {"files": version["files"], "config": config})
        assert status == 201, answer
        labels.append(answer["label"])
    return labels


def pids_by_version(load: Load) -> dict[str, set[int]]:
    """Which processes answered as which version."""
    result: dict[str, set[int]] = {}
    for _, answer in list(load.answers):
        result.setdefault(answer["version"], set()).add(answer["pid"])
    return result


@contextlib.contextmanager
def faulty(folder: Path, engine: str = "process", **settings: str) -> Iterator[tuple[Agent, Faults]]:
    """A running agent with its failpoints, cleared away afterwards."""
    host, faults = Agent(folder, engine, settings), Faults.made(folder / "failpoints")
    try:
        yield faults.start(host), faults
    finally:
        host.clear()


def killed_everywhere(
    host: Agent, faults: Faults, act: Callable[[], None], rest: Callable[[], None], *, leave: tuple[str, ...] = ()
) -> list[str]:
    """Do something once to learn which points it passes, then once for each of them with the agent killed there.

    `rest` waits until the host has come to rest and judges it. Returns the points.
    """
    faults.reached()
    act()
    rest()
    points = [point for point in faults.reached() if point not in leave]
    for point in points:
        faults.arm(point)
        act()
        faults.until_killed(host, point)
        faults.start(host)
        try:
            rest()
        except AssertionError as error:
            raise AssertionError(f"killed at {point}, one of {points}: {error}") from error
    return points
