"""The disk of the data folder fills up: what is asked is refused in clear words, nothing is lost, serving goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.bundles import QUICK, deployed, push
from tests.end_to_end.rig import Agent, Load, agent, until
from tests.models import trivial_bundle

pytestmark = pytest.mark.envoy
MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Agent]:
    """An agent whose data lies on a disk of 64 MiB."""
    folder = tmp_path / "host" / "data"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "none", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        with agent(tmp_path / "host", min_free=str(MIB)) as host:
            yield host
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(host: Agent) -> None:
    subprocess.run(["mount", "-o", "remount,size=256m", str(host.data_folder)], check=True)


def big(folder: Path, version: str, size: int) -> Path:
    return trivial_bundle(folder / f"big-{version}", "big", version, files={"weights.bin": os.urandom(size)})


def labels(host: Agent) -> set[str]:
    status, versions = host.api("GET", "/v1/versions")
    assert status == 200
    return {version["label"] for version in versions}


def filled(host: Agent) -> Path:
    """Fill the disk to the last byte; the file that does it."""
    path = host.data_folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 << 10)):
            pass
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x"):
            pass
    return path


def test_a_push_beyond_the_disk_is_refused_and_works_once_there_is_space(small: Agent, tmp_path: Path) -> None:
    host = small
    deployed(host, tmp_path, "1")
    host.must("push", str(big(tmp_path, "1", 30 * MIB)))
    too_much = big(tmp_path, "2", 40 * MIB)
    with Load(host, "toy", threads=2, pause=0.02) as load:
        ran = host.qd("push", str(too_much), "--json")
        assert ran.code == 1
        error = ran.json()["error"]
        assert error["code"] == "no_space" and error["hint"], error
        assert "free" in host.qd("push", str(too_much)).err
        assert labels(host) == {"toy:1", "big:1"}
        host.must("push", str(big(tmp_path, "3", MIB)))
        grow(host)
        host.must("push", str(too_much))
    assert labels(host) == {"toy:1", "big:1", "big:2", "big:3"}
    assert load.failures == []


def test_with_no_byte_left_the_agent_answers_and_serves_and_goes_on_when_there_is_space(
    small: Agent, tmp_path: Path
) -> None:
    host = small
    deployed(host, tmp_path, "1", "--warm", "600")
    push(host, tmp_path, "2")
    with Load(host, "toy", threads=2, pause=0.02) as load:
        filler = filled(host)

        def refused() -> bool:
            """Space that SQLite has set aside already lets a few changes through."""
            status, answer = host.api("POST", "/v1/deployments/toy/scale", {"replicas": 1})
            if status == 507:
                assert answer["code"] == "no_space" and answer["hint"], answer
            else:
                assert status == 202, answer
            return bool(status == 507)

        until(refused, "a change is refused for lack of space")
        for path in ("/v1/status", "/v1/deployments/toy", "/v1/versions", "/v1/operations"):
            assert host.api("GET", path)[0] == 200
        before = len(load.answers)
        until(lambda: len(load.answers) > before + 50, "calls go on")
        filler.unlink()
        host.must("deploy", "toy:2", *QUICK)
        until(lambda: host.call("toy")[1]["version"] == "2", "the new version answers")
    assert load.failures == []
    assert host.process is not None and host.process.poll() is None
    assert host.revisions("toy")[0]["outcome"] == "serving"


def test_an_agent_that_is_killed_on_a_full_disk_starts_and_serves_and_goes_on(small: Agent, tmp_path: Path) -> None:
    host = small
    deployed(host, tmp_path, "1")
    push(host, tmp_path, "2")
    with Load(host, "toy", threads=1, pause=0.02) as load:
        filler = filled(host)
        host.kill()
        host.start()
        assert host.deployment("toy")["live_revision"] == 1
        assert host.call("toy")[0] == 200
        filler.unlink()
        host.must("deploy", "toy:2", *QUICK)
    assert load.failures == []
