"""GPUs that get ill under models that serve: where another has room they move, else they stay and it is said why."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.end_to_end.bundles import QUICK
from tests.end_to_end.faults import servers
from tests.end_to_end.gpu_host import GpuHost, gpu_host, whole
from tests.end_to_end.rig import Load, until
from tests.nvml.fake import GIB, GPU_IS_LOST, FakeEvent, Fault, uuid_of

pytestmark = pytest.mark.usefixtures("nvml_compiler")


def places(host: GpuHost, name: str = "toy") -> list[list[str]]:
    """The devices of each replica that runs."""
    return sorted(each["gpus"] for each in host.agent.deployment(name)["replicas"] if each["state"] != "exited")


def trust(host: GpuHost, uuid: str) -> None:
    code, made = host.agent.api("POST", f"/v1/gpus/{uuid}/trust", {"why": "it was reset"})
    assert (code, made["kind"], made["state"]) == (202, "trust-gpu", "succeeded")


def test_a_model_leaves_a_gpu_that_falls_off_the_bus_and_loses_no_request(tmp_path: Path) -> None:
    with gpu_host(tmp_path, whole(0, 0)) as host:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.must("deploy", label, *QUICK)
        ((first,),) = places(host)
        fell = next(index for index in range(2) if uuid_of(index) == first)
        ill = whole(0, 0).changed(fell, events=(FakeEvent(1, 79),))
        with Load(host.agent, "toy") as load:
            host.programs.change(ill.failing(Fault(gpu=fell, code=GPU_IS_LOST)))
            until(lambda: places(host) == [[uuid_of(1 - fell)]], "the model moved", 60)
            until(lambda: host.agent.deployment("toy")["state"] == "serving", "it serves as it should")
            assert host.gpu(first)["health"] == "lost"
            assert host.gpu(first)["why"].startswith("Xid 79 at ")
            host.programs.change(ill)  # it answers again, but nobody has trusted it yet
            until(lambda: host.gpu(first)["health"] == "sick", "it is sick", 90)
            trust(host, first)
            until(lambda: host.gpu(first)["health"] == "ok", "it is trusted")
        assert load.failures == []
        assert len(load.count("pid")) == 2
        assert places(host) == [[uuid_of(1 - fell)]], "nothing moves back"


def test_a_model_without_another_gpu_serves_on_and_says_why_also_after_a_restart_of_the_agent(tmp_path: Path) -> None:
    with gpu_host(tmp_path, whole(0)) as host:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.must("deploy", label, *QUICK)
        with Load(host.agent, "toy") as load:
            host.programs.change(whole(0).changed(0, events=(FakeEvent(1, 95),)))
            until(lambda: host.agent.deployment("toy")["state"] == "degraded", "it is degraded")
            host.programs.change(replace(whole(0)))
            host.agent.kill()
            host.agent.start()
            until(lambda: host.agent.deployment("toy")["state"] == "degraded", "it is known still")
            said = host.agent.deployment("toy")["summary"]
            assert "gpu0, which is sick (Xid 95 at " in said and "no other place" in said
            trust(host, uuid_of(0))
            until(lambda: host.agent.deployment("toy")["state"] == "serving", "it serves as it should")
        assert load.failures == []
        assert len(load.count("pid")) == 1


def test_a_model_that_crashes_on_a_sick_gpu_without_another_one_comes_back_there_and_says_why_it_is_degraded(
    tmp_path: Path,
) -> None:
    with gpu_host(tmp_path, whole(0)) as host:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.must("deploy", label, *QUICK)
        host.programs.change(whole(0).changed(0, events=(FakeEvent(1, 48),)))
        until(lambda: host.gpu(uuid_of(0))["health"] == "sick", "it is sick")
        (before,) = servers(host.agent)
        os.kill(before, signal.SIGKILL)
        until(lambda: servers(host.agent).keys() - {before}, "it runs again", 30)
        until(lambda: host.agent.deployment("toy")["replicas_ready"] == 1, "it serves again", 30)
        told = host.agent.deployment("toy")
        assert told["state"] == "degraded"
        assert told["summary"].startswith("1 of 1 replicas ready, on gpu0, which is sick (Xid 48 at ")
        assert told["summary"].endswith("gpu0 is sick")
        code, refused = host.agent.api("PUT", "/v1/deployments/other?plan=true", {"version": label})
        assert code == 200
        assert any("gpu0 is sick" in warning for warning in refused["warnings"]), "it takes nothing new"


def test_a_model_leaves_a_gpu_that_was_lost_while_no_agent_ran(tmp_path: Path) -> None:
    with gpu_host(tmp_path, whole(0, 0)) as host:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.must("deploy", label, *QUICK)
        ((first,),) = places(host)
        fell = next(index for index in range(2) if uuid_of(index) == first)
        with Load(host.agent, "toy") as load:
            host.agent.kill()
            host.programs.change(whole(0, 0).failing(Fault(gpu=fell, code=GPU_IS_LOST)))
            host.agent.start()
            until(lambda: places(host) == [[uuid_of(1 - fell)]], "the model moved", 60)
            until(lambda: host.agent.deployment("toy")["state"] == "serving", "it serves as it should")
        assert load.failures == []


def test_a_driver_that_is_not_loaded_yet_when_the_agent_starts_does_not_make_a_host_without_gpus(
    tmp_path: Path,
) -> None:
    with gpu_host(tmp_path, whole(0)) as host:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.kill()
        host.programs.change(replace(whole(0), loaded="absent"))
        host.agent.start()
        code, answer = host.agent.api("PUT", "/v1/deployments/toy", {"version": label, "dwell": 0.2})
        assert code == 202, answer
        said = "driver of the GPUs is gone"
        until(lambda: said in str(host.agent.deployment("toy")["summary"]), "it says what it waits for")
        host.programs.change(replace(whole(0), generation=2))
        host.agent.until_settled("toy", 1)
