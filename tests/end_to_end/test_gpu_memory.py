"""Whose memory it is on a host with a fake driver: a real agent, real replicas, and their real pids on its GPUs."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.end_to_end.bundles import QUICK, push
from tests.end_to_end.containers import EVERYWHERE, python_image
from tests.end_to_end.rig import Agent, until
from tests.nvml.fake import GIB, MIB, FakeGpu, FakeMig, FakeNvml, FakeProcess, Fault, Machine, compiler, uuid_of

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.skipif(compiler() is None, reason="no C compiler: the fake NVML cannot be built"),
]


@pytest.fixture
def nvml(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path / "nvml", Machine((FakeGpu(), FakeGpu())))


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is nobody's replica."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def started(tmp_path: Path, nvml: FakeNvml, engine: str = "process") -> Iterator[Agent]:
    settings = {"gpu_labels": "1=spare,rack-2"}
    made = Agent(tmp_path / "host", engine, settings, variables=nvml.env)
    try:
        yield made.start()
    finally:
        made.clear()


@pytest.fixture
def host(tmp_path: Path, nvml: FakeNvml) -> Iterator[Agent]:
    yield from started(tmp_path, nvml)


@pytest.fixture
def docker_host(tmp_path: Path, nvml: FakeNvml) -> Iterator[Agent]:
    yield from started(tmp_path, nvml, "docker")


def status(host: Agent) -> dict[str, Any]:
    code, answer = host.api("GET", "/v1/status")
    assert code == 200 and isinstance(answer, dict)
    return answer


def holding(*processes: FakeProcess, **changes: Any) -> FakeGpu:
    """A GPU with these processes and as much memory in use."""
    return FakeGpu(processes=processes, memory_used=sum(one.memory or 0 for one in processes), **changes)


def owners(host: Agent, uuid: str) -> dict[int, dict[str, Any]]:
    """Who is on a GPU, by pid."""
    return {one["pid"]: one for use in status(host)["gpu_uses"] if use["uuid"] == uuid for one in use["processes"]}


def told(host: Agent, uuid: str, *pids: int) -> dict[int, dict[str, Any]]:
    """The same, once it is these."""
    until(lambda: set(owners(host, uuid)) == set(pids), f"{pids} are on {uuid}")
    return owners(host, uuid)


def gauge(host: Agent) -> int | None:
    return next((one["gpu_memory"] for one in status(host)["replica_gauges"]), None)


def pids(host: Agent) -> dict[str, Any]:
    """What the replica says of itself."""
    (replica,) = host.deployment("toy")["replicas"]
    address, _, port = replica["address"].rpartition(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=10)
    connection.request("GET", "/pid")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert isinstance(answer, dict)
    return answer


def test_every_process_is_told_by_its_deployment_or_by_user_and_command(
    host: Agent, nvml: FakeNvml, stranger: int, tmp_path: Path
) -> None:
    host.must("deploy", push(host, tmp_path, "1", mode="child"), *QUICK)
    own = pids(host)
    gpu = holding(FakeProcess(own["pid"], 3 * GIB), FakeProcess(stranger, 5 * GIB), FakeProcess(1 << 22, GIB))
    nvml.write(Machine((gpu, FakeGpu())))
    found = told(host, uuid_of(0), own["pid"], stranger, 1 << 22)
    (replica,) = host.deployment("toy")["replicas"]
    mine = found[own["pid"]]
    assert (mine["replica"], mine["deployment"], mine["revision"]) == (replica["id"], "toy", 1)
    assert mine["command"].startswith("python") and mine["user"]
    other, gone = found[stranger], found[1 << 22]
    assert (other["replica"], other["command"], other["user"]) == (None, "sleep", mine["user"])
    assert (gone["replica"], gone["command"], gone["user"], gone["memory"]) == (None, None, None, GIB)
    until(lambda: gauge(host) == 3 * GIB, "the gauges of the replica tell what it holds")
    assert {one["uuid"]: one["labels"] for one in status(host)["gpu_facts"]} == {
        uuid_of(0): [],
        uuid_of(1): ["rack-2", "spare"],
    }
    until(lambda: host.revisions("toy")[0]["gpu_memory_peak"] == 3 * GIB, "the revision tells its peak")

    # The memory moves to a child in a session of its own, and more of it: over two GPUs.
    nvml.write(Machine((holding(FakeProcess(own["child"], 2 * GIB)), holding(FakeProcess(own["child"], 2 * GIB)))))
    for uuid in (uuid_of(0), uuid_of(1)):
        assert told(host, uuid, own["child"])[own["child"]]["replica"] == replica["id"]
    until(lambda: gauge(host) == 4 * GIB, "the gauges tell the sum over both")
    assert host.revisions("toy")[0]["gpu_memory_peak"] == 3 * GIB, "the peak is that of one GPU"

    # An agent that is killed knows the peak and the owners again.
    host.kill()
    host.start()
    assert told(host, uuid_of(0), own["child"])[own["child"]]["deployment"] == "toy"
    assert host.revisions("toy")[0]["gpu_memory_peak"] == 3 * GIB
    host.must("deploy", push(host, tmp_path, "2"), *QUICK)
    assert [one["gpu_memory_peak"] for one in host.revisions("toy")] == [None, 3 * GIB]
    host.must("rollback", "toy")
    assert host.revisions("toy")[0]["gpu_memory_peak"] == 3 * GIB, "a rollback needs what its body needed"


def test_instances_lost_gpus_and_memory_that_nobody_owns_are_told_apart(
    host: Agent, nvml: FakeNvml, stranger: int
) -> None:
    part = FakeMig(memory_used=4 * GIB, processes=(FakeProcess(stranger, 4 * GIB),))
    leaking = FakeGpu(memory_used=20 * GIB)
    nvml.write(Machine((FakeGpu(migs=(part,), memory_used=5 * GIB), leaking), generation=2))
    told(host, uuid_of(0, 0), stranger)
    until(lambda: {one["uuid"]: one["unexplained"] for one in status(host)["gpu_uses"]}[uuid_of(1)], "the leak is told")
    uses = {one["uuid"]: one for one in status(host)["gpu_uses"]}
    assert not uses.get(uuid_of(0), {}).get("processes"), "nobody is told twice"
    assert uses[uuid_of(0, 0)]["unexplained"] == 0
    assert abs(uses[uuid_of(1)]["unexplained"] - 20 * GIB) < 64 * MIB

    lost = Fault(gpu=1, code=15)
    nvml.write(replace(nvml.machine, faults=(lost,)))
    health = until(
        lambda: [one for one in status(host)["gpus"] if one["uuid"] == uuid_of(1) and one["health"] == "lost"],
        "the GPU is lost",
    )
    assert health[0]["memory_used"] is None
    until(lambda: uuid_of(1) not in {one["uuid"] for one in status(host)["gpu_uses"]}, "nobody is told to be on it")


@pytest.mark.docker
def test_processes_in_a_container_are_those_of_its_replica(
    docker_host: Agent, nvml: FakeNvml, stranger: int, tmp_path: Path
) -> None:
    host = docker_host
    with python_image() as image:
        host.must("deploy", push(host, tmp_path, "1", env=EVERYWHERE, image=image, mode="child"), *QUICK)
        (replica,) = host.deployment("toy")["replicas"]
        rows = images.docker("top", replica["handle"], "-eo", "pid").split("\n")[1:]
        inside = sorted(int(row) for row in rows if row.strip())
        assert len(inside) >= 2, "the server and its child"
        sizes = [FakeProcess(pid, (n + 1) * GIB) for n, pid in enumerate(inside)]
        nvml.write(Machine((holding(*sizes, FakeProcess(stranger, GIB)), FakeGpu())))
        found = told(host, uuid_of(0), *inside, stranger)
        assert {found[pid]["replica"] for pid in inside} == {replica["id"]}
        assert found[stranger]["replica"] is None
        whole = sum(one.memory or 0 for one in sizes)
        until(lambda: gauge(host) == whole, "the gauges of the replica tell what it holds")
        until(lambda: host.revisions("toy")[0]["gpu_memory_peak"] == whole, "the revision tells its peak")
        host.clear()
