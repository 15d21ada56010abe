"""The agent is killed with SIGKILL at every step of a change, found by watching one go through, and started again."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.bundles import deployed, golden, push
from tests.end_to_end.faults import (
    ENDED,
    Faults,
    ask,
    at_rest,
    copies,
    faulty,
    killed_everywhere,
    operations,
    pids_by_version,
)
from tests.end_to_end.rig import Agent, Load, until
from tests.models import trivial_bundle

pytestmark = pytest.mark.envoy


@pytest.fixture
def host_and_faults(tmp_path: Path) -> Iterator[tuple[Agent, Faults]]:
    with faulty(tmp_path / "host", probe_interval="0.2") as both:
        yield both


class Deploying:
    """Deploys one new version after the other, and tells what may have come of the last one."""

    def __init__(self, host: Agent, folder: Path, **wish: Any) -> None:
        deployed(host, folder, "1", golden=golden("right"), answer="right")
        self._host, self._wish = host, {"dwell": 0.1, "warm": 0, **wish}
        self._labels = iter(copies(host, "toy:1", 60))
        self._old = self._new = "1"

    def __call__(self) -> None:
        label = next(self._labels)
        self._new = label.partition(":")[2]
        answer = ask(self._host, "PUT", "/v1/deployments/toy", {"version": label, **self._wish})
        assert answer is None or answer[0] == 202, answer

    def rest(self) -> None:
        """The new one is live, and the old one when the wish was never written."""
        live = at_rest(self._host, "toy")
        assert live in (self._old, self._new)
        self._old = live


def test_killed_at_every_step_of_an_overlap_the_host_goes_on_serving_and_comes_to_rest(
    host_and_faults: tuple[Agent, Faults], tmp_path: Path
) -> None:
    host, faults = host_and_faults
    deploy = Deploying(host, tmp_path)
    gateway = host.gateway_pid()
    with Load(host, "toy", threads=2, pause=0.02) as load:
        points = killed_everywhere(host, faults, deploy, deploy.rest)
    assert load.failures == []
    assert host.gateway_pid() == gateway
    assert {version: len(pids) for version, pids in pids_by_version(load).items() if len(pids) > 1} == {}
    begun = {point.removesuffix(".begins") for point in points if point.endswith(".begins")}
    assert begun >= {"stage", "start", "check", "promote", "cool", "stop", "gateway"}


def test_killed_at_every_step_of_a_hold_nobody_who_waits_is_lost(
    host_and_faults: tuple[Agent, Faults], tmp_path: Path
) -> None:
    host, faults = host_and_faults
    deploy = Deploying(host, tmp_path, handover="hold")
    gateway = host.gateway_pid()
    with Load(host, "toy", threads=2, pause=0.02) as load:
        points = killed_everywhere(host, faults, deploy, deploy.rest)
    assert load.failures == []
    assert host.gateway_pid() == gateway
    begun = {point.removesuffix(".begins") for point in points if point.endswith(".begins")}
    assert begun >= {"stage", "hold", "stop", "start", "check", "promote", "release", "gateway"}


def test_killed_at_every_step_of_a_rollback_both_revisions_keep_their_processes(
    host_and_faults: tuple[Agent, Faults], tmp_path: Path
) -> None:
    host, faults = host_and_faults
    for version in ("1", "2"):
        deployed(host, tmp_path, version, "--warm", "600")

    def rollback() -> None:
        answer = ask(host, "POST", "/v1/deployments/toy/rollback", {})
        assert answer is None or answer[0] == 202, answer

    def rest() -> None:
        def quiet() -> bool:
            newest = max(revision["number"] for revision in host.revisions("toy"))
            status = host.deployment("toy")
            live = status["live_revision"] == newest and status["state"] == "serving"
            ended = all(operation["state"] in ENDED for operation in operations(host))
            return live and ended and [replica["state"] for replica in status["replicas"]] == ["ready", "ready"]

        until(quiet, "the host comes to rest", 45)
        assert host.call("toy")[1]["version"] == host.deployment("toy")["label"].partition(":")[2]

    gateway = host.gateway_pid()
    with Load(host, "toy", threads=2, pause=0.02) as load:
        points = killed_everywhere(host, faults, rollback, rest)
    assert load.failures == []
    assert host.gateway_pid() == gateway
    assert {version: len(pids) for version, pids in pids_by_version(load).items()} == {"1": 1, "2": 1}
    assert {"promote.begins", "promote.done", "gateway.begins", "gateway.clusters", "gateway.applied"} <= set(points)


def sent(host: Agent, folder: Path) -> None:
    """Push as the console does, to an agent that may die at any moment."""
    config = tomllib.loads((folder / "model.toml").read_text())
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = [
        {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]
    ask(host, "POST", "/v1/pushes", {"files": files, "config": config})
    for file in files:
        path = f"/v1/blobs/{file['sha256']}?size={file['size']}&offset=0"
        ask(host, "PUT", path, contents[str(file["path"])])
    ask(host, "POST", "/v1/versions", {"files": files, "config": config})


def test_killed_at_every_step_of_an_upload_it_goes_on_and_nothing_unverified_is_ever_a_version(
    host_and_faults: tuple[Agent, Faults], tmp_path: Path
) -> None:
    host, faults = host_and_faults
    host.must("deploy", push(host, tmp_path, "1"), "--dwell", "0")
    numbers = count(1)
    current: tuple[Path, str] = (tmp_path, "")

    def upload() -> None:
        nonlocal current
        label = f"big:{next(numbers)}"
        weights = os.urandom(9 << 20)
        folder = trivial_bundle(tmp_path / label, "big", label.partition(":")[2], files={"weights.bin": weights})
        current = folder, label
        sent(host, folder)

    def rest() -> None:
        folder, label = current
        labels = [version["label"] for version in host.api("GET", "/v1/versions")[1]]
        digest = hashlib.sha256((folder / "weights.bin").read_bytes()).hexdigest()
        blob = host.data_folder / "blobs" / digest[:2] / digest
        if label in labels:
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == digest
        host.must("push", str(folder))
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == digest
        assert not (host.data_folder / "blobs" / "partial" / digest).exists()
        labels = [version["label"] for version in host.api("GET", "/v1/versions")[1]]
        assert labels.count(label) == 1

    with Load(host, "toy", threads=1, pause=0.02) as load:
        points = killed_everywhere(host, faults, upload, rest)
    assert load.failures == []
    assert {"upload.written", "upload.verified", "upload.sealed", "upload.named", "store.commits"} <= set(points)
