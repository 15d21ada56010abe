"""What the docker engine promises beyond the contract: hardening, refused changes, images, a dead daemon."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import pytest

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers import container
from quarterdeck_agent.drivers.base import Life, Progress, Resources, ignore_progress
from quarterdeck_agent.drivers.docker import DockerEngine
from quarterdeck_agent.errors import EngineError, EngineUnresponsive, StartRefused
from tests import images
from tests.agent.engines.rigs import MIB, DockerRig, Program, ended
from tests.agent.engines.tampering import tampering

pytestmark = pytest.mark.docker

LOOK_AROUND = """
id -u; id -g
cat /proc/self/status
cat /proc/mounts
touch /written && echo root is writable
touch /tmp/written && echo tmp is writable
cat /proc/1/comm
echo whole
"""


def inspected(handle: str) -> dict[str, Any]:
    (made,) = json.loads(images.docker("inspect", handle))
    assert isinstance(made, dict)
    return made


def test_a_container_sees_itself_as_hardened(docker_rig: DockerRig) -> None:
    async def story() -> str:
        engine = docker_rig.engine()
        found = await engine.start(docker_rig.spec("one", Program(LOOK_AROUND)))
        await ended(engine, found)
        await engine.close()
        return docker_rig.output(found)

    said = asyncio.run(story())
    assert said.splitlines()[:2] == ["65534", "65534"]
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in said
    assert "root is writable" not in said
    assert "tmp is writable" in said
    tmp = next(line for line in said.splitlines() if " /tmp " in line)
    for option in ("nosuid", "nodev", "noexec", "size=1048576k"):
        assert option in tmp
    assert re.search(r" /model \S+ ro", said)


def test_a_container_has_its_limits_and_no_door_to_the_host(docker_rig: DockerRig) -> None:
    async def story() -> dict[str, Any]:
        engine = docker_rig.engine()
        spec = docker_rig.spec("one", resources=Resources(cpus=0.5, memory=64 * MIB, shm=8 * MIB))
        made = inspected((await engine.start(spec)).handle)
        await engine.close()
        return made

    made = asyncio.run(story())
    host = made["HostConfig"]
    assert host["PidsLimit"] == 512
    assert (host["Memory"], host["MemorySwap"], host["ShmSize"]) == (64 * MIB, 64 * MIB, 8 * MIB)
    assert host["NanoCpus"] == 500_000_000
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert not made["NetworkSettings"]["Ports"]
    assert list(made["NetworkSettings"]["Networks"]) == [container.network_name(docker_rig.instance)]


def test_a_writable_root_and_a_user_are_given_when_asked_by_name(docker_rig: DockerRig) -> None:
    async def story() -> str:
        engine = docker_rig.engine()
        spec = docker_rig.spec("one", Program("id -u; touch /tmp/x; touch /written && echo written"))
        spec = docker_rig.spec("two", Program(spec.command[2]), writable_root=True, user="0:0")
        found = await engine.start(spec)
        await ended(engine, found)
        await engine.close()
        return docker_rig.output(found)

    assert asyncio.run(story()).split() == ["0", "written"]


def test_replicas_answer_the_host_and_cannot_reach_each_other(docker_rig: DockerRig) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        server = await engine.start(docker_rig.spec("one", Program("exec httpd -f -p {port} -h /www")))
        assert server.address is not None
        url = "http://{}:{}/".format(*server.address)
        deadline = time.monotonic() + 10
        while (told := await asyncio.to_thread(fetch, url)) != "served\n":
            assert time.monotonic() < deadline, told
        neighbour = await engine.start(docker_rig.spec("two", Program(f"wget -T 2 -q -O - {url} || echo unreachable")))
        await ended(engine, neighbour)
        assert docker_rig.output(neighbour).splitlines()[-1] == "unreachable"
        await engine.close()

    asyncio.run(story())


def fetch(url: str) -> str:
    return subprocess.run(["busybox", "wget", "-q", "-O", "-", url], capture_output=True, text=True, check=False).stdout


def test_volumes_that_an_image_declares_become_memory(docker_rig: DockerRig) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        with images.busybox_image("VOLUME /scratch") as tag:
            image = await engine.resolve(tag, ignore_progress)
            found = await engine.start(docker_rig.spec("one", Program("touch /scratch/x && echo ok"), image=image))
            await ended(engine, found)
            assert docker_rig.output(found) == "ok"
            assert [
                each["Type"] for each in inspected(found.handle)["Mounts"] if each["Destination"] == "/scratch"
            ] == ["tmpfs"]
            await engine.remove(await ended(engine, found))
        await engine.close()

    asyncio.run(story())


# --- refusals --------------------------------------------------------------------------------------------------


def host_field(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(asked: dict[str, Any]) -> None:
        asked["HostConfig"][key] = value

    return change


def added(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(asked: dict[str, Any]) -> None:
        asked["HostConfig"][key] = [*(asked["HostConfig"].get(key) or []), value]

    return change


def top_field(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(asked: dict[str, Any]) -> None:
        asked[key] = value

    return change


def without_memory(asked: dict[str, Any]) -> None:
    asked["HostConfig"].update(Memory=0, MemorySwap=0)


TAMPERED = {
    "HostConfig.Privileged": host_field("Privileged", True),
    "HostConfig.PidMode": host_field("PidMode", "host"),
    "HostConfig.IpcMode": host_field("IpcMode", "host"),
    "HostConfig.UTSMode": host_field("UTSMode", "host"),
    "HostConfig.CgroupnsMode": host_field("CgroupnsMode", "host"),
    "HostConfig.CapAdd": host_field("CapAdd", ["SYS_ADMIN"]),
    "HostConfig.CapDrop": host_field("CapDrop", []),
    "HostConfig.SecurityOpt": host_field("SecurityOpt", ["seccomp=unconfined"]),
    "HostConfig.ReadonlyRootfs": host_field("ReadonlyRootfs", False),
    "HostConfig.Devices": added(
        "Devices", {"PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/k", "CgroupPermissions": "r"}
    ),
    "HostConfig.DeviceCgroupRules": host_field("DeviceCgroupRules", ["a *:* rwm"]),
    "HostConfig.Binds": host_field("Binds", ["/etc:/host:ro"]),
    "Mounts": added("Mounts", {"Type": "bind", "Source": "/etc", "Target": "/host"}),
    "HostConfig.PortBindings": host_field("PortBindings", {"80/tcp": [{"HostPort": "0"}]}),
    "HostConfig.PublishAllPorts": host_field("PublishAllPorts", True),
    "HostConfig.PidsLimit": host_field("PidsLimit", -1),
    "HostConfig.Memory": without_memory,
    "HostConfig.RestartPolicy": host_field("RestartPolicy", {"Name": "always"}),
    "HostConfig.GroupAdd": host_field("GroupAdd", ["0"]),
    "HostConfig.Sysctls": host_field("Sysctls", {"net.ipv4.ip_forward": "1"}),
    "HostConfig.OomScoreAdj": host_field("OomScoreAdj", -500),
    "HostConfig.ExtraHosts": host_field("ExtraHosts", ["a:1.2.3.4"]),
    "HostConfig.CgroupParent": host_field("CgroupParent", "/other"),
    "HostConfig.MaskedPaths": host_field("MaskedPaths", []),
    "HostConfig.Tmpfs": host_field("Tmpfs", {"/tmp": "rw,exec"}),
    "HostConfig.LogConfig": host_field("LogConfig", {"Type": "none", "Config": {}}),
    "Config.User": top_field("User", "0"),
    "Config.Cmd": top_field("Cmd", ["sleep", "1"]),
    "Config.Env": top_field("Env", ["LD_PRELOAD=/x"]),
    "Config.Labels": top_field("Labels", {container.OWNER: "x"}),
}


@pytest.mark.parametrize("field", TAMPERED)
def test_a_container_that_differs_from_what_was_asked_is_removed_and_refused(
    docker_rig: DockerRig, tmp_path: Path, field: str
) -> None:
    async def story() -> None:
        with tampering(tmp_path, TAMPERED[field]) as (address, _):
            engine = DockerEngine(address, docker_rig.instance, SystemClock())
            spec = docker_rig.spec("one", resources=Resources(memory=64 * MIB))
            with pytest.raises(StartRefused) as caught:
                await engine.start(spec)
            assert field in caught.value.detail
            assert (await engine.inventory()).replicas == ()
            await engine.close()

    asyncio.run(story())
    assert not images.docker("ps", "-aq", "--filter", f"name={docker_rig.instance[:6]}")


def test_another_network_is_refused(docker_rig: DockerRig, tmp_path: Path) -> None:
    def to_host(asked: dict[str, Any]) -> None:
        asked["HostConfig"]["NetworkMode"] = "host"
        asked["NetworkingConfig"] = {}

    async def story() -> None:
        with tampering(tmp_path, to_host) as (address, _):
            engine = DockerEngine(address, docker_rig.instance, SystemClock())
            with pytest.raises(StartRefused, match="NetworkMode"):
                await engine.start(docker_rig.spec("one"))
            await engine.close()

    asyncio.run(story())


def test_a_network_of_our_name_that_lets_replicas_talk_is_refused(docker_rig: DockerRig) -> None:
    name = container.network_name(docker_rig.instance)
    images.docker("network", "create", "--label", f"{container.OWNER}={docker_rig.instance}", name)

    async def story() -> None:
        engine = docker_rig.engine()
        with pytest.raises(StartRefused) as caught:
            await engine.start(docker_rig.spec("one"))
        assert caught.value.field == "network"
        await engine.close()

    asyncio.run(story())


def test_an_image_with_labels_of_ours_is_neither_started_nor_adopted(docker_rig: DockerRig) -> None:
    spec = docker_rig.spec("posing")
    changes = [f"LABEL {key}={value or '-'}" for key, value in container.labels(spec, docker_rig.instance).items()]

    async def story() -> None:
        engine = docker_rig.engine()
        mine = await engine.start(docker_rig.spec("one"))
        with images.busybox_image(*changes) as tag:
            image = await engine.resolve(tag, ignore_progress)
            with pytest.raises(StartRefused) as caught:
                await engine.start(docker_rig.spec("two", image=image))
            assert caught.value.field == "image"
            network = container.network_name(docker_rig.instance)
            name = container.container_name(spec.id)
            handle = images.docker("run", "-d", "--name", name, "--network", network, image, "sleep", "300")
            inventory = await engine.inventory()
            assert [each.id for each in inventory.replicas] == [mine.id]
            assert handle in [each.handle for each in inventory.foreign]
            with pytest.raises(StartRefused, match="left alone"):
                await engine.start(spec)
            images.docker("rm", "-f", handle)
        await engine.close()

    asyncio.run(story())


def test_a_missing_image_is_refused_by_name(docker_rig: DockerRig) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        with pytest.raises(StartRefused) as caught:
            await engine.start(docker_rig.spec("one", image="sha256:" + "0" * 64))
        assert caught.value.field == "image"
        await engine.close()

    asyncio.run(story())


def test_a_gpu_that_the_host_does_not_have_is_refused(docker_rig: DockerRig) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this host has GPUs")

    async def story() -> None:
        engine = docker_rig.engine()
        with pytest.raises(StartRefused) as caught:
            await engine.start(docker_rig.spec("one", gpus=("GPU-00000000-0000-0000-0000-000000000000",)))
        assert caught.value.field == "gpus"
        assert (await engine.inventory()).replicas == ()
        await engine.close()

    asyncio.run(story())


# --- time ------------------------------------------------------------------------------------------------------


class Jumped(SystemClock):
    """A host whose wall clock was set while its containers ran."""

    def __init__(self, by: timedelta) -> None:
        super().__init__()
        self._by = by

    def wall(self) -> datetime:
        return super().wall() + self._by


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_container_is_as_old_as_it_is_whatever_was_done_to_the_wall_clock(docker_rig: DockerRig, hours: int) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        before = docker_rig.clock.now()
        await engine.start(docker_rig.spec("one"))
        after = docker_rig.clock.now()
        later = DockerEngine(images.SOCKET, docker_rig.instance, Jumped(timedelta(hours=hours)))
        (found,) = (await later.inventory()).replicas
        assert found.started is not None and before - 0.1 <= found.started <= after + 0.1
        await later.close()
        await engine.close()

    asyncio.run(story())


# --- cost ------------------------------------------------------------------------------------------------------


def test_a_steady_host_costs_one_list_call(docker_rig: DockerRig, tmp_path: Path) -> None:
    async def story() -> None:
        with tampering(tmp_path, lambda asked: None) as (address, requests):
            engine = DockerEngine(address, docker_rig.instance, SystemClock())
            for number in range(3):
                await engine.start(docker_rig.spec(f"r{number}"))
            first = await engine.inventory()
            del requests[:]
            assert await engine.inventory() == first
            assert len(requests) == 1
            await engine.close()

    asyncio.run(story())


# --- images ----------------------------------------------------------------------------------------------------


def test_a_tag_is_pulled_from_a_registry_with_progress_and_named_by_digest(
    docker_rig: DockerRig, tmp_path: Path
) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        with images.registry(tmp_path) as registry:
            tag = f"{registry.address}/team/busybox:{uuid.uuid4().hex[:8]}"
            with images.busybox_image(tag=tag):
                images.docker("push", tag)
            progress: list[Progress] = []
            image = await engine.resolve(tag, progress.append)
            assert re.fullmatch(rf"{registry.address}/team/busybox@sha256:[0-9a-f]{{64}}", image)
            assert progress[-1].text == f"pulled {tag}"
            assert all(each.total is None or each.done <= each.total for each in progress)
            assert await engine.resolve(tag, ignore_progress) == image
            assert await engine.resolve(image, ignore_progress) == image
            found = await engine.start(docker_rig.spec("one", image=image))
            assert found.life is Life.RUNNING
        # The registry is gone now: what is here is enough.
        assert await engine.resolve(tag, ignore_progress) == image
        docker_rig.clear()
        images.docker("rmi", "-f", image, tag, check=False)
        await engine.close()

    asyncio.run(story())


def test_a_tag_that_moved_in_its_registry_is_pulled_again(docker_rig: DockerRig, tmp_path: Path) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        with images.registry(tmp_path) as registry:
            tag = f"{registry.address}/team/moving:latest"
            with images.busybox_image("ENV GENERATION=1", tag=tag):
                images.docker("push", tag)
                first = await engine.resolve(tag, ignore_progress)
                aside = f"{registry.address}/team/aside:old"
                images.docker("tag", tag, aside)
            with images.busybox_image("ENV GENERATION=2", tag=tag):
                images.docker("push", tag)
            images.docker("tag", aside, tag)
            second = await engine.resolve(tag, ignore_progress)
            assert second != first
            images.docker("rmi", "-f", aside, tag, first, second, check=False)
        await engine.close()

    asyncio.run(story())


def test_an_image_that_was_only_ever_local_is_named_by_its_id(docker_rig: DockerRig) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        with images.busybox_image() as tag:
            assert await engine.resolve(tag, ignore_progress) == images.docker("inspect", "-f", "{{.Id}}", tag)
        await engine.close()

    asyncio.run(story())


def test_an_image_that_its_registry_does_not_have_is_told_with_the_registrys_words(
    docker_rig: DockerRig, tmp_path: Path
) -> None:
    async def story() -> None:
        engine = docker_rig.engine()
        with images.registry(tmp_path) as registry:
            with pytest.raises(EngineError) as caught:
                await engine.resolve(f"{registry.address}/team/nothing:1", ignore_progress)
            assert "not found" in caught.value.detail or "unknown" in caught.value.detail
            assert caught.value.field == "image"
        await engine.close()

    asyncio.run(story())


# --- a daemon that is dead or hangs ----------------------------------------------------------------------------


# The SDK forgets a socket that could not connect; the collector closes it, here and not in a later test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_daemon_is_unresponsive_and_says_where(tmp_path: Path) -> None:
    async def story() -> None:
        engine = DockerEngine(f"unix://{tmp_path / 'nobody.sock'}", "ab" * 16, SystemClock())
        for _ in range(2):
            with pytest.raises(EngineUnresponsive, match=r"nobody\.sock"):
                await engine.inventory()
        await engine.close()

    asyncio.run(story())
    gc.collect()


def test_a_hung_daemon_is_unresponsive_within_the_deadline_and_well_again_when_it_wakes(tmp_path: Path) -> None:
    async def story(address: str, process: subprocess.Popen[bytes]) -> None:
        engine = DockerEngine(address, "ab" * 16, SystemClock(), deadline=1.0)
        await engine.inventory()
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(EngineUnresponsive):
            await engine.inventory()
        assert time.monotonic() - began < 3
        asked = time.monotonic()
        outcomes = await asyncio.gather(*(engine.version() for _ in range(20)), return_exceptions=True)
        assert all(isinstance(each, EngineUnresponsive) for each in outcomes)
        assert time.monotonic() - asked < 5
        os.kill(process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 10
        while True:
            try:
                await engine.inventory()
                break
            except EngineUnresponsive:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        await engine.close()

    with images.daemon(tmp_path) as (address, process):
        asyncio.run(story(address, process))


def test_the_network_goes_with_the_last_replica_and_stays_while_one_is_there(docker_rig: DockerRig) -> None:
    name = container.network_name(docker_rig.instance)

    async def story() -> None:
        engine = docker_rig.engine()
        found = await engine.start(docker_rig.spec("one"))
        await engine.close()
        assert images.docker("network", "ls", "-q", "--filter", f"name={name}")
        engine = docker_rig.engine()
        await engine.start(docker_rig.spec("one"))
        await engine.start(docker_rig.spec("two"))
        for found in (await engine.inventory()).replicas:
            await engine.stop(found, 0)
            await engine.remove(found)
        await engine.close()
        assert not images.docker("network", "ls", "-q", "--filter", f"name={name}")

    asyncio.run(story())


def test_the_sdk_speaks_the_version_that_the_schema_is_written_for() -> None:
    client = docker.APIClient(images.SOCKET, version="auto")
    assert tuple(int(part) for part in client.api_version.split(".")) >= (1, 41)
    client.close()
