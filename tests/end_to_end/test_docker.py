"""A deployment's life in real containers, from its push to its logs after everything is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.end_to_end.bundles import QUICK, golden, push
from tests.end_to_end.containers import EVERYWHERE, python_image
from tests.end_to_end.faults import ask, faulty
from tests.end_to_end.rig import Agent, Load, agent, until
from tests.models import toml

pytestmark = [pytest.mark.docker, pytest.mark.envoy]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with python_image() as tag:
        yield tag


@pytest.fixture
def docker_host(tmp_path: Path) -> Iterator[Agent]:
    with agent(tmp_path / "host", "docker") as running:
        yield running


def inspected(host: Agent) -> list[dict[str, Any]]:
    """What Docker itself says of the deployment's containers."""
    handles = [replica["handle"] for replica in host.deployment("toy")["replicas"]]
    found = json.loads(images.docker("inspect", *handles))
    assert isinstance(found, list)
    return found


def test_containers_are_deployed_replaced_rolled_back_and_outlive_the_agent(
    docker_host: Agent, tmp_path: Path, image: str
) -> None:
    host = docker_host
    served: dict[str, Any] = {"env": EVERYWHERE, "image": image}
    host.must("deploy", push(host, tmp_path, "1", **served), *QUICK)
    second = push(host, tmp_path, "2", golden=golden("two"), answer="two", **served)
    with Load(host, "toy", threads=2, pause=0.02) as load:
        host.must("deploy", second, *QUICK)
        until(lambda: load.count()["2"] > 20, "the new version answers")
        before = {made["Id"] for made in inspected(host)}
        host.kill()
        host.start()
        ready = ["ready", "ready"]
        until(lambda: [r["state"] for r in host.deployment("toy")["replicas"]] == ready, "both are seen again")
        assert {made["Id"] for made in inspected(host)} == before
        host.must("rollback", "toy")
        after = len(load.answers)
        until(lambda: len(load.answers) > after + 20, "calls go on")
        assert {answer["version"] for _, answer in load.answers[after + 4 :]} == {"1"}
        assert {made["Id"] for made in inspected(host)} == before
    assert load.failures == []
    for made in inspected(host):
        settings = made["HostConfig"]
        assert settings["CapDrop"] == ["ALL"] and settings["ReadonlyRootfs"] and not settings["Privileged"]
        assert "no-new-privileges:true" in settings["SecurityOpt"]
        assert made["Config"]["User"] == "65534:65534" and not settings["PortBindings"]
        assert [mount["RW"] for mount in made["Mounts"] if mount["Destination"] == "/model"] == [False]
    host.must("rm", "toy", "--yes")
    until(lambda: host.api("GET", "/v1/deployments/toy")[0] == 404, "it is gone")
    for revision in ("1", "2"):
        assert "listening" in host.must("logs", "toy", "--revision", revision).out


@pytest.mark.parametrize("point", ["engine.created", "engine.ran", "stop.ended"])
def test_an_agent_killed_between_two_calls_of_docker_leaves_no_container_behind(
    tmp_path: Path, image: str, point: str
) -> None:
    with faulty(tmp_path / "host", "docker") as (host, faults):
        host.must("deploy", push(host, tmp_path, "1", env=EVERYWHERE, image=image), *QUICK, "--warm", "0")
        push(host, tmp_path, "2", env=EVERYWHERE, image=image)
        with Load(host, "toy", threads=1, pause=0.02) as load:
            faults.arm(point)
            ask(host, "PUT", "/v1/deployments/toy", {"version": "toy:2", "dwell": 0.2, "warm": 0})
            faults.until_killed(host, point)
            faults.start(host)
            host.until_settled("toy", 2)
            until(lambda: len(host.deployment("toy")["replicas"]) == 1, "one container is left")
            until(lambda: host.call("toy")[1]["version"] == "2", "the new version answers")
        assert load.failures == []
        owner = f"label=quarterdeck.owner={(host.data_folder / 'instance').read_text().strip()}"
        (left,) = images.docker("ps", "-aq", "--no-trunc", "--filter", owner).split()
        assert left == host.deployment("toy")["replicas"][0]["handle"]


def test_an_image_is_taken_from_its_registry_once_and_recorded_by_digest(docker_host: Agent, tmp_path: Path) -> None:
    host = docker_host
    with images.registry(tmp_path) as registry:
        tag = f"{registry.address}/team/served:1"
        with images.busybox_image(tag=tag):
            images.docker("push", tag)
        folder = tmp_path / "served"
        folder.mkdir()
        command = ["httpd", "-f", "-p", "{port}", "-h", "/www"]
        settings = {"image": tag, "command": command, "health_path": "/index.html", "predict_path": "/index.html"}
        config = {"name": "toy", "version": "1", "runtime": "command", "settings": settings}
        (folder / "model.toml").write_text(toml(config))
        host.must("push", str(folder))
        try:
            host.must("deploy", "toy:1", *QUICK)
            recorded = host.revisions("toy")[0]["image"]
            assert recorded.startswith(f"{registry.address}/team/served@sha256:")
            assert [made["Config"]["Image"] for made in inspected(host)] == [recorded]
            host.must("restart", "toy")
            assert host.revisions("toy")[0]["image"] == recorded
        finally:
            host.clear()
            images.docker("rmi", "-f", tag, check=False)


def test_a_container_that_is_killed_from_outside_comes_back(docker_host: Agent, tmp_path: Path, image: str) -> None:
    host = docker_host
    host.must("deploy", push(host, tmp_path, "1", env=EVERYWHERE, image=image), *QUICK)
    (first,) = [made["Id"] for made in inspected(host)]
    images.docker("rm", "-f", first)

    def another() -> bool:
        replicas = host.deployment("toy")["replicas"]
        return [r["state"] for r in replicas] == ["ready"] and replicas[0]["handle"] != first

    until(another, "another container serves")
    assert host.call("toy")[0] == 200
