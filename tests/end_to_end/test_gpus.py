"""GPUs that misbehave under a real agent and real replicas: the library below is a fake, all else is as it would be."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.bundles import QUICK
from tests.end_to_end.gpu_host import GpuHost, gpu_host, somebody, whole
from tests.end_to_end.rig import Agent, Load, until
from tests.nvml.fake import GIB, GPU_IS_LOST, FakeEvent, FakeGpu, FakeMig, FakeProcess, Fault, Machine, uuid_of

pytestmark = pytest.mark.usefixtures("nvml_compiler")


def summary(agent: Agent, name: str = "toy") -> str:
    return str(agent.deployment(name)["summary"])


def test_a_driver_that_is_loaded_again_under_load_costs_no_request_and_its_new_gpus_are_seen(tmp_path: Path) -> None:
    with gpu_host(tmp_path, whole(0)) as host:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.must("deploy", label, *QUICK)
        until(lambda: host.gpu(uuid_of(0))["memory_used"] == 18 * GIB, "the model's memory is seen")
        with Load(host.agent, "toy") as load:
            host.programs.change(replace(whole(0), loaded="absent"))
            until(lambda: host.nvml() != "ok", "the driver's absence is noticed")
            host.programs.change(replace(whole(0, 0), generation=2))
            until(lambda: len(host.status()["gpus"]) == 2, "both GPUs are seen", 90)
            host.until_nvml("ok")
        assert load.failures == []
        assert len(load.count("pid")) == 1
        uses = {use["uuid"]: use["processes"] for use in host.status()["gpu_uses"]}
        assert [(p["deployment"], p["revision"], p["memory"]) for p in uses[uuid_of(0)]] == [("toy", 1, 18 * GIB)]


def test_a_driver_that_hangs_is_told_within_15_s_and_holds_up_nothing_else(tmp_path: Path) -> None:
    with gpu_host(tmp_path, whole(0)) as host:
        first = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.must("deploy", first, *QUICK)
        second = host.push(tmp_path, "2", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.programs.change(whole(0).failing(Fault(seconds=60)))
        slowest = 0.0
        began = time.monotonic()
        while host.nvml() != "unresponsive":
            asked = time.monotonic()
            host.status()
            slowest = max(slowest, time.monotonic() - asked)
            assert time.monotonic() - began < 15, "the hang is not told"
            time.sleep(0.02)
        assert slowest < 1.0
        with Load(host.agent, "toy") as load:
            host.agent.api("PUT", "/v1/deployments/toy", {"version": second, "dwell": 0.2})
            until(lambda: "GPUs cannot be seen" in summary(host.agent), "it says what the deployment waits for")
            assert host.agent.call("toy")[1]["version"] == "1"
            host.programs.change(whole(0))
            host.until_nvml("ok")
            host.agent.until_settled("toy", 2)
        assert load.failures == []


def test_a_process_that_comes_between_the_plan_and_the_start_is_named_and_waited_for(tmp_path: Path) -> None:
    with gpu_host(tmp_path, whole(0)) as host, somebody() as pid:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "60GiB"}, 55 * GIB)
        asked = {"version": label, "dwell": 0.2}
        code, planned = host.agent.api("PUT", "/v1/deployments/toy?plan=true", asked)
        assert code == 200, planned
        assert uuid_of(0) in str(planned) or "gpu0" in str(planned), planned
        taken = replace(whole(44).gpus[0], processes=(FakeProcess(pid, 44 * GIB),))
        host.programs.change(Machine(gpus=(taken,)))
        until(lambda: host.gpu(uuid_of(0))["memory_used"] == 44 * GIB, "the other process is seen")
        host.agent.api("PUT", "/v1/deployments/toy", asked)
        until(lambda: f"pid {pid}" in summary(host.agent), "the process in the way is named")
        assert "60 GiB" in summary(host.agent)
        assert host.programs.running() == ()
        host.programs.change(whole(0))
        host.agent.until_settled("toy", 1)


def test_memory_that_is_not_released_ends_a_hold_with_its_holder_named_and_the_old_revision_back(
    tmp_path: Path,
) -> None:
    with gpu_host(tmp_path, whole(0)) as host, somebody() as pid:
        first = host.push(tmp_path, "1", {"gpus": 1, "vram": "30GiB"}, 28 * GIB)
        host.agent.must("deploy", first, *QUICK, "--warm", "0")
        second = host.push(tmp_path, "2", {"gpus": 1, "vram": "60GiB"}, 58 * GIB)
        host.programs.linger("1", pid, 25 * GIB)
        with Load(host.agent, "toy", threads=2, timeout=150) as load:
            limits = {"drain": 1.0, "release": 8.0}
            host.agent.api("PUT", "/v1/deployments/toy", {"version": second, "dwell": 0.2, "limits": limits})
            until(lambda: f"pid {pid}" in summary(host.agent), "the holder is named while it is waited for")
            until(lambda: host.revisions()[0]["failure"], "the rollout is given up", 120)
            host.agent.until_settled("toy", 1)
            seen = len(load.answers)
            until(lambda: len(load.answers) > seen + 10, "the old version answers again")
        failure = host.revisions()[0]["failure"]
        assert failure["reason"] == "memory_not_free"
        assert f"pid {pid}" in failure["message"]
        assert load.failures == [] and set(load.count()) == {"1"}


def falls(host: GpuHost, machine: Machine, uuid: str) -> None:
    """Let a GPU fall off the bus: the driver tells Xid 79, and that the GPU is lost from then on."""
    number = next(place for place in range(len(machine.gpus)) if uuid_of(place) == uuid)
    fallen = machine.changed(number, events=(FakeEvent(1, 79),))
    host.programs.change(fallen.failing(Fault(gpu=number, code=GPU_IS_LOST)))
    until(lambda: host.gpu(uuid)["health"] == "lost", "the GPU is said to be lost", 15)
    facts = next(fact for fact in host.status()["gpu_facts"] if fact["uuid"] == uuid)
    assert [xid["code"] for xid in facts["xids"]] == [79]
    assert "Xid 79" in host.gpu(uuid)["why"]


def deploying_second(host: GpuHost, folder: Path, **asked: Any) -> str:
    """Deploy a first version, and a second that is not ready soon; the device that the second starts on."""
    claim = {"gpus": 1, "vram": "60GiB"}
    host.agent.must("deploy", host.push(folder, "1", claim, 55 * GIB), *QUICK)
    second = host.push(folder, "2", claim, 55 * GIB, mode="ready_after=4")
    host.agent.api("PUT", "/v1/deployments/toy", {"version": second, "dwell": 0.2, **asked})
    until(lambda: len(host.programs.running()) == 2, "the new version has started")
    return next(program.devices[0] for program in host.programs.running() if program.version == "2")


def test_xid_79_during_a_deploy_sends_the_new_revision_to_another_gpu_before_the_switch(tmp_path: Path) -> None:
    machine = whole(0, 0, 0)
    with gpu_host(tmp_path, machine) as host:
        where = deploying_second(host, tmp_path)
        with Load(host.agent, "toy", threads=2) as load:
            falls(host, machine, where)
            host.agent.until_settled("toy", 2)
            until(lambda: load.count()["2"] > 5, "the new version answers")
        assert load.failures == []
        assert all(where not in replica["gpus"] for replica in host.agent.deployment("toy")["replicas"])


def test_an_xid_during_a_deploy_with_no_other_gpu_ends_it_at_its_deadline_and_the_old_revision_serves(
    tmp_path: Path,
) -> None:
    machine = whole(0, 0)
    with gpu_host(tmp_path, machine) as host:
        where = deploying_second(host, tmp_path, deadline=8.0)
        with Load(host.agent, "toy", threads=2) as load:
            host.programs.change(machine.changed(int(where == uuid_of(1)), events=(FakeEvent(1, 95),)))
            until(lambda: host.gpu(where)["health"] == "sick", "the GPU is said to be sick", 15)
            until(lambda: host.revisions()[0]["failure"], "the rollout is given up", 40)
            host.agent.until_settled("toy", 1)
        assert host.revisions()[0]["failure"]["reason"] == "no_gpu"
        assert "Xid 95" in host.revisions()[0]["failure"]["message"]
        assert load.failures == [] and set(load.count()) == {"1"}


def test_eight_gpus_of_seven_instances_each_are_seen_claimed_and_told_apart(tmp_path: Path) -> None:
    instances = tuple(FakeMig(7 + place) for place in range(7))
    machine = Machine(gpus=tuple(FakeGpu(migs=instances, memory_used=0) for _ in range(8)))
    with gpu_host(tmp_path, machine) as host:
        until(lambda: len(host.status()["gpus"]) == 64, "all instances are seen")
        label = host.push(tmp_path, "1", {"gpus": 1, "mig": "1g.10gb"}, 8 * GIB)
        host.agent.must("deploy", label, *QUICK, "--replicas", "10")
        places = [program.devices for program in host.programs.running()]
        assert len(places) == len({*places}) == 10
        assert all(len(devices) == 1 and devices[0].startswith("MIG-") for devices in places)
        replicas = host.agent.deployment("toy")["replicas"]
        by_pid = {program.pid: program.devices[0] for program in host.programs.running()}

        def told() -> dict[str, Any]:
            uses = host.status()["gpu_uses"]
            return {use["uuid"]: p for use in uses for p in use["processes"] if p["deployment"] == "toy"}

        until(lambda: len(told()) == 10, "each replica's memory is said to be its own")
        assert {p["pid"]: uuid for uuid, p in told().items()} == by_pid
        assert {p["replica"] for p in told().values()} == {replica["id"] for replica in replicas}
