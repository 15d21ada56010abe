"""GPUs given to replicas by uuid, and what each claims remembered on it, by every engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent.drivers import container, gpu_door
from quarterdeck_agent.drivers.base import Found, Resources
from quarterdeck_agent.drivers.docker import DockerEngine
from quarterdeck_agent.errors import StartRefused
from tests.agent.engines.rigs import DockerRig, ProcessRig, Program, SimulatedRig, ended
from tests.agent.engines.tampering import tampering

GPU, MIG = "GPU-7e1f0c1e-0000-0000-0000-000000000001", "MIG-7e1f0c1e-0000-0000-0000-000000000002"
GIB = 1 << 30

CLAIMS = [
    (Resources(gpus=1, vram=20 * GIB), (20 * GIB, False)),
    (Resources(gpus=1), (None, True)),
    (Resources(gpus=1, vram=20 * GIB, exclusive=True), (None, True)),
    (Resources(gpus=1, mig="1g.10gb"), (None, True)),
]


@pytest.fixture
def rig_of(request: pytest.FixtureRequest, tmp_path: Path) -> ProcessRig | SimulatedRig:
    kind: type[ProcessRig | SimulatedRig] = request.param
    return kind(tmp_path, "c" * 32)


@pytest.mark.parametrize("rig_of", [ProcessRig, SimulatedRig], indirect=True)
@pytest.mark.parametrize(("asks", "claim"), CLAIMS)
def test_a_replica_remembers_its_claim(
    rig_of: ProcessRig | SimulatedRig, asks: Resources, claim: tuple[int | None, bool]
) -> None:
    async def story() -> None:
        engine = rig_of.engine()
        started = await engine.start(rig_of.spec("one", resources=asks, gpus=(GPU,)))
        (again,) = (await rig_of.engine().inventory()).replicas
        for found in (started, again):
            assert (found.gpus, found.vram, found.exclusive) == ((GPU,), *claim)
        await engine.stop(again, 0.0)

    asyncio.run(story())


def test_a_process_sees_its_gpus_by_uuid_and_no_others(process_rig: ProcessRig) -> None:
    async def story() -> list[str]:
        engine = process_rig.engine()
        tell = Program('echo "gpus=$CUDA_VISIBLE_DEVICES"')
        env = {"CUDA_VISIBLE_DEVICES": "0"}
        two = await engine.start(process_rig.spec("two", tell, gpus=(GPU, MIG), env=env))
        none = await engine.start(process_rig.spec("none", tell, env=env))
        return [process_rig.output(await ended(engine, found)).split("gpus=")[1].strip() for found in (two, none)]

    assert asyncio.run(story()) == [f"{GPU},{MIG}", ""]


def test_a_process_that_an_older_agent_started_is_read_without_its_claim(process_rig: ProcessRig) -> None:
    async def story() -> Found:
        engine = process_rig.engine()
        spec = process_rig.spec("one", resources=Resources(gpus=1, vram=GIB), gpus=(GPU,))
        started = await engine.start(spec)
        path = process_rig.folder / "replicas" / spec.id / "replica.json"
        memo = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("vram", "exclusive")}
        path.write_text(json.dumps(memo))
        (found,) = (await process_rig.engine().inventory()).replicas
        await engine.stop(started, 0.0)
        return found

    found = asyncio.run(story())
    assert (found.gpus, found.vram, found.exclusive) == ((GPU,), None, False)


def test_a_memo_without_gpus_is_as_older_agents_wrote_it(process_rig: ProcessRig) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        spec = process_rig.spec("one", resources=Resources(vram=GIB))
        started = await engine.start(spec)
        memo = json.loads((process_rig.folder / "replicas" / spec.id / "replica.json").read_text())
        assert not {"vram", "exclusive"} & memo.keys()
        await engine.stop(started, 0.0)

    asyncio.run(story())


# --- the way into a container ----------------------------------------------------------------------------------


@pytest.fixture
def no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quarterdeck_agent.drivers.gpu_door.shutil.which", lambda _: None)


@pytest.mark.usefixtures("no_hook")
def test_a_runtime_of_nvidias_is_used_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    info = {"Runtimes": {"runc": {}, "nvidia": {}}, "CDISpecDirs": [str(tmp_path)]}
    assert gpu_door.door(info) == "nvidia"


@pytest.mark.usefixtures("no_hook")
def test_cdi_is_used_where_it_has_nvidias_devices(tmp_path: Path) -> None:
    info: dict[str, Any] = {"Runtimes": {"runc": {}}, "CDISpecDirs": [str(tmp_path), "/nonexistent"]}
    with pytest.raises(StartRefused):
        gpu_door.door(info)
    (tmp_path / "other.yaml").write_text("kind: example.com/fpga\n")
    with pytest.raises(StartRefused):
        gpu_door.door(info)
    (tmp_path / "nvidia.yaml").write_text("cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n")
    assert gpu_door.door(info) == "cdi"
    assert gpu_door.door({"DiscoveredDevices": [{"Source": "cdi", "ID": f"nvidia.com/gpu={GPU}"}]}) == "cdi"


def test_the_hook_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quarterdeck_agent.drivers.gpu_door.shutil.which", lambda name: f"/usr/bin/{name}")
    assert gpu_door.door({"Runtimes": {"runc": {}}}) == "nvidia"


@pytest.mark.usefixtures("no_hook")
def test_a_daemon_without_any_way_is_refused_with_the_mend() -> None:
    with pytest.raises(StartRefused) as caught:
        gpu_door.door({"Runtimes": {"runc": {}}, "CDISpecDirs": None})
    assert caught.value.field == "gpus"
    assert "nvidia-container-toolkit" in (caught.value.hint or "")


def test_devices_are_asked_for_by_uuid() -> None:
    by_hook, by_name = gpu_door.request((GPU, MIG), "nvidia"), gpu_door.request((GPU, MIG), "cdi")
    assert (by_hook["Driver"], by_hook["DeviceIDs"], by_hook["Capabilities"]) == ("nvidia", [GPU, MIG], [["gpu"]])
    assert (by_name["Driver"], by_name["DeviceIDs"]) == ("cdi", [f"nvidia.com/gpu={GPU}", f"nvidia.com/gpu={MIG}"])


def test_no_variable_of_a_bundle_or_image_lets_other_gpus_in(docker_spec: Any) -> None:
    cases: list[tuple[tuple[str, ...], gpu_door.Door, str]] = [
        ((), "nvidia", "void"),
        ((GPU,), "nvidia", GPU),
        ((GPU,), "cdi", "void"),
    ]
    for gpus, way, wanted in cases:
        spec = replace(docker_spec, gpus=gpus, env={"NVIDIA_VISIBLE_DEVICES": "all"})
        env = container.environment(spec, way)
        assert [line for line in env if line.startswith("NVIDIA_VISIBLE")] == [f"NVIDIA_VISIBLE_DEVICES={wanted}"]


@pytest.fixture
def docker_spec(tmp_path: Path) -> Any:
    return ProcessRig(tmp_path, "c" * 32).spec("one", image="sha256:" + "0" * 64)


def test_a_container_without_the_label_of_its_claim_is_still_ours(docker_spec: Any) -> None:
    spec = replace(docker_spec, gpus=(GPU,), resources=Resources(gpus=1, vram=GIB))
    ours, instance = container.labels(spec, "i" * 32), "i" * 32
    names, mode = (f"/{container.container_name(spec.id)}",), container.network_name(instance)
    older = {key: value for key, value in ours.items() if key != container.CLAIM}
    assert container.doubt(names, ours, mode, instance) is None
    assert container.doubt(names, older, mode, instance) is None
    for wrong in ("", "all", "-1", "9" * 40):
        assert container.doubt(names, {**ours, container.CLAIM: wrong}, mode, instance) is not None
    assert container.CLAIM not in container.labels(replace(spec, gpus=()), instance)


@pytest.mark.docker
@pytest.mark.parametrize(("asks", "claim"), CLAIMS[:2])
def test_a_container_with_gpus_is_asked_for_by_uuid_and_remembers_its_claim(
    docker_rig: DockerRig, tmp_path: Path, asks: Resources, claim: tuple[int | None, bool]
) -> None:
    """With a daemon that pretends NVIDIA's runtime: what it is asked for is kept from the real one, and told back."""
    wanted: list[Any] = []

    def keep(body: dict[str, Any]) -> None:
        wanted[:] = body["HostConfig"]["DeviceRequests"]
        body["HostConfig"]["DeviceRequests"] = []

    def pretend(path: str, answer: Any) -> None:
        if path.endswith("/info"):
            answer["Runtimes"]["nvidia"] = {"path": "nvidia-container-runtime"}
        elif path.endswith("/json") and "HostConfig" in answer:
            answer["HostConfig"]["DeviceRequests"] = wanted

    async def story() -> None:
        with tampering(tmp_path, keep, pretend) as (url, _):
            engine = DockerEngine(url, docker_rig.instance, docker_rig.clock)
            spec = docker_rig.spec("one", Program("exec sleep 300"), resources=asks, gpus=(GPU, MIG))
            started = await engine.start(spec)
            (found,) = (await engine.inventory()).replicas
            for each in (started, found):
                assert (each.gpus, each.vram, each.exclusive) == ((GPU, MIG), *claim)
            await engine.stop(found, 0.0)
            await engine.remove(found)
            await engine.close()

    asyncio.run(story())
    assert [each["DeviceIDs"] for each in wanted] == [[GPU, MIG]]
