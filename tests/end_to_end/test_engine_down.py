"""The Docker daemon hangs or dies under a running agent: what serves goes on serving, and the agent says what is wrong.

The daemon is the test's own.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.bundles import QUICK, push
from tests.end_to_end.containers import EVERYWHERE, Daemon, python_image
from tests.end_to_end.rig import Agent, Load, agent, until

pytestmark = [pytest.mark.docker, pytest.mark.envoy]
STOPPED = 30.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("docker")) as running:
        yield running


@pytest.fixture(scope="module")
def image(daemon: Daemon) -> Iterator[str]:
    with python_image(daemon.address) as tag:
        yield tag


@pytest.fixture
def served(daemon: Daemon, image: str, tmp_path: Path) -> Iterator[Agent]:
    """An agent on that daemon with one deployment, and a second version pushed."""
    with agent(tmp_path / "host", "docker", docker_url=daemon.address) as host:
        host.must("deploy", push(host, tmp_path, "1", env=EVERYWHERE, image=image), *QUICK)
        push(host, tmp_path, "2", env=EVERYWHERE, image=image)
        yield host


def engine_state(host: Agent) -> str:
    status, answer = host.api("GET", "/v1/status")
    assert status == 200, answer
    states: list[str] = [part["state"] for part in answer["parts"] if part["name"] == "docker"]
    return states[0]


class Asking:
    """Asks the API all the while and keeps how long each answer took."""

    def __init__(self, host: Agent) -> None:
        self._host, self._ending = host, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.took: list[float] = []
        self.wrong: list[Any] = []

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ending.wait(0.05):
            for path in ("/v1/status", "/v1/deployments/toy", "/v1/operations"):
                began = time.monotonic()
                status, answer = self._host.api("GET", path)
                self.took.append(time.monotonic() - began)
                if status != 200:
                    self.wrong.append(answer)


def test_while_the_daemon_hangs_the_agent_answers_says_so_and_serves_on(served: Agent, daemon: Daemon) -> None:
    host = served
    handles = {replica["handle"] for replica in host.deployment("toy")["replicas"]}
    with Load(host, "toy", threads=2, pause=0.02) as load, Asking(host) as asking:
        daemon.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            until(lambda: engine_state(host) == "unresponsive", "the status says that the engine hangs", 15)
            wish = {"version": "toy:2", "dwell": 0.2}
            assert host.api("PUT", "/v1/deployments/toy", wish)[0] == 202
            while time.monotonic() - stopped < STOPPED:
                assert engine_state(host) == "unresponsive"
                time.sleep(0.5)
            assert {replica["handle"] for replica in host.deployment("toy")["replicas"]} == handles
            assert host.deployment("toy")["state"] == "deploying"
        finally:
            daemon.signal(signal.SIGCONT)
        until(lambda: engine_state(host) == "ok", "the engine is well again", 20)
        host.until_settled("toy", 2)
    assert load.failures == []
    assert asking.wrong == []
    assert sorted(asking.took)[int(len(asking.took) * 0.99)] < 0.5, sorted(asking.took)[-5:]


def test_after_the_daemon_was_killed_and_started_what_is_wanted_is_back(served: Agent, daemon: Daemon) -> None:
    host = served
    with Load(host, "toy", threads=1, pause=0.02) as load:
        daemon.kill()
        until(lambda: engine_state(host) == "unresponsive", "the status says that the engine is away", 15)
        before = len(load.answers)
        until(lambda: len(load.answers) > before + 20, "calls go on without a daemon")
        assert load.failures == []
    daemon.start()
    began = time.monotonic()
    until(lambda: engine_state(host) == "ok", "the engine is well again", 30)
    until(lambda: host.deployment("toy")["replicas_ready"] == 1, "the replica is back", 30)
    assert host.call("toy")[0] == 200
    assert time.monotonic() - began < 30
