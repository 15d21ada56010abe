"""What the doctor says of GPUs: what is, and what to do about it; nothing where there is nothing to say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent.doctor import examine
from quarterdeck_agent.gpus.doctor import examine_gpus
from quarterdeck_agent.gpus.placement import Sight
from quarterdeck_agent.gpus.xids import load_xids
from quarterdeck_agent.protocol import Check, Gpu, GpuFacts, GpuHealth, GpuProcess, GpuUse, Part, PartState
from tests.agent.sampler.test_sampler import context

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
GPU = Gpu(0, "GPU-a", "H100", memory_total=80 << 30, memory_used=8 << 30)
FACTS = GpuFacts("GPU-a", persistence=True, ecc_enabled=True)


def checks(gpu: Gpu = GPU, facts: GpuFacts = FACTS, *processes: GpuProcess) -> dict[str, Check]:
    sight = Sight((gpu,), (GpuUse(gpu.uuid, processes, 0),), (facts,))
    return {check.name: check for check in examine_gpus(sight, NOW)}


def test_a_gpu_that_is_well_is_one_line() -> None:
    assert checks() == {"gpu0": Check("gpu0", "ok", "H100: 8 GiB of 80 GiB in use")}
    assert examine_gpus(Sight(), NOW) == ()


def test_a_sick_gpu_says_why_and_how_it_gets_trusted_again() -> None:
    why = "Xid 79 at 13:58 UTC on 23 Nov: the GPU fell off the bus; drain the host and reboot"
    check = checks(replace(GPU, health=GpuHealth.SICK, why=why))["gpu0"]
    assert (check.result, check.detail) == ("failed", f"H100: {why}")
    assert "qd gpus --trust 0" in check.mend
    check = checks(replace(GPU, health=GpuHealth.DEGRADED, why="slowed down"))["gpu0"]
    assert (check.result, check.detail) == ("warning", "H100: slowed down")


def test_xids_of_late_are_told_once() -> None:
    catalogue = load_xids()
    old, late, told, harmless = (
        catalogue.event(31, NOW - timedelta(days=2)),
        catalogue.event(13, NOW - timedelta(hours=1)),
        catalogue.event(95, NOW - timedelta(hours=2)),
        catalogue.event(43, NOW),
    )
    sick = replace(GPU, health=GpuHealth.SICK, why="Xid 95 at 12:00 UTC on 23 Nov: a memory error")
    check = checks(sick, replace(FACTS, xids=(harmless, late, told, old)))["Xids"]
    assert check.result == "warning"
    assert check.detail.startswith("gpu0: Xid 13 at 13:00 UTC, a program ran into an error")
    assert "95" not in check.detail and "31" not in check.detail and "43" not in check.detail


@pytest.mark.parametrize(
    ("facts", "name", "result", "word"),
    [
        (replace(FACTS, persistence=False), "persistence mode", "warning", "off on gpu0"),
        (replace(FACTS, ecc_enabled=False), "ECC", "warning", "off on gpu0"),
        (replace(FACTS, remapped_rows=3), "GPU memory", "ok", "replaced 3 faulty rows"),
    ],
)
def test_what_an_operator_would_set_otherwise(facts: GpuFacts, name: str, result: str, word: str) -> None:
    check = checks(facts=facts)[name]
    assert check.result == result and word in check.detail
    assert check.mend or result == "ok"
    assert name not in checks(facts=GpuFacts("GPU-a"))  # what a device does not tell is not wrong


def test_processes_that_nobody_manages_are_for_information() -> None:
    stranger = GpuProcess(4711, 3 << 30, user="alice", command="python")
    ours = GpuProcess(12, 5 << 30, replica="m-1-0", deployment="m")
    check = checks(GPU, FACTS, stranger, ours)["other GPU users"]
    assert check == Check("other GPU users", "ok", "gpu0: 3 GiB by pid 4711 (alice, python)")


@pytest.mark.parametrize(("runtimes", "result"), [({"runc": {}}, "failed"), ({"runc": {}, "nvidia": {}}, "ok")])
def test_containers_need_a_way_to_be_given_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtimes: dict[str, Any], result: str
) -> None:
    monkeypatch.setattr("quarterdeck_agent.drivers.gpu_door.shutil.which", lambda _: None)

    async def info() -> dict[str, Any]:
        return {"Runtimes": runtimes, "LiveRestoreEnabled": True}

    it = context(tmp_path, sight=lambda: Sight((GPU,), (), (FACTS,)), docker_info=info)
    (check,) = [check for check in asyncio.run(examine(it)) if check.name == "container toolkit"]
    assert check.result == result
    assert ("nvidia-container-toolkit" in check.mend) is (result == "failed")


def test_the_doctor_asks_for_the_toolkit_only_where_there_are_gpus_and_docker(tmp_path: Path) -> None:
    async def info() -> dict[str, Any]:
        return {"Runtimes": {"nvidia": {}}, "LiveRestoreEnabled": True}

    def names(**changes: Any) -> set[str]:
        return {check.name for check in asyncio.run(examine(context(tmp_path, **changes)))}

    sight = Sight((GPU,), (), (FACTS,))
    assert {"gpu0", "container toolkit"} <= names(sight=lambda: sight, docker_info=info)
    assert "container toolkit" not in names(sight=lambda: sight)
    assert "container toolkit" not in names(docker_info=info)


def test_a_driver_that_was_updated_under_its_users_has_a_mend_of_its_own(tmp_path: Path) -> None:
    detail = "NVML's library is of another version than the loaded kernel module 570.1"
    part = Part("nvml", PartState.FAILED, NOW, "", detail)
    found = {check.name: check for check in asyncio.run(examine(context(tmp_path, nvml=lambda: part)))}
    assert "modprobe nvidia" in found["nvml"].mend
