"""A container that lost its GPUs says so from inside; one that hangs, or cannot tell, is left alone."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from quarterdeck_agent.drivers.base import Found
from quarterdeck_agent.drivers.docker_inside import InsideLook, verdict
from tests import images
from tests.agent.engines.rigs import DockerRig

LOST = "Failed to initialize NVML: Unknown Error"
SMI = """#!/bin/sh
cat /model/smi-says
read code < /model/smi-code
[ $code = hang ] || exit $code
while [ ! -e /model/smi-release ]; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("code", "output", "lost"),
    [
        (0, "GPU 0: NVIDIA H100 (UUID: GPU-1)\n", False),
        (255, f"{LOST}\r\n", True),
        (4, "NVIDIA-SMI: Insufficient Permissions\n", True),
        (255, "open /dev/nvidiactl: Operation not permitted\n", True),
        (6, "No devices were found\n", True),
        (1, "something else\n", False),
        (126, "OCI runtime exec failed: exec: operation not permitted\n", False),
        (127, 'exec: "nvidia-smi": executable file not found in $PATH\n', False),
        (None, LOST, False),
    ],
)
def test_only_the_known_signs_count(code: int | None, output: str, lost: bool) -> None:
    assert bool(verdict(code, output)) is lost


@pytest.fixture(scope="module")
def with_smi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image whose `nvidia-smi` says what stands in a file, and ends with the code of another."""
    folder = tmp_path_factory.mktemp("image")
    with images.busybox_image() as tag:
        name = f"{tag}-making"
        made = images.docker("create", "--name", name.replace("/", "-").replace(":", "-"), tag, "true")
        try:
            (folder / "nvidia-smi").write_text(SMI)
            (folder / "nvidia-smi").chmod(0o755)
            images.docker("cp", str(folder / "nvidia-smi"), f"{made}:/bin/nvidia-smi")
            built = images.docker("commit", made)
        finally:
            images.docker("rm", "-f", made)
        try:
            yield built
        finally:
            images.docker("rmi", "-f", built, check=False)


class Inside:
    """One running container, and the files that its `nvidia-smi` reads."""

    def __init__(self, rig: DockerRig) -> None:
        self.bundle = rig.bundle
        self.says("GPU 0: H100", "0")
        self.found: Found = asyncio.run(self._start(rig))

    async def _start(self, rig: DockerRig) -> Found:
        engine = rig.engine()
        found = await engine.start(rig.spec("inside"))
        await engine.close()
        return found

    def says(self, text: str, code: str) -> None:
        (self.bundle / "smi-says").write_text(text + "\n")
        (self.bundle / "smi-code").write_text(code + "\n")


@pytest.fixture
def inside(tmp_path: Path, with_smi: str) -> Iterator[Inside]:
    rig = DockerRig(tmp_path, uuid.uuid4().hex, with_smi)
    yield Inside(rig)
    rig.clear()


@pytest.mark.docker
def test_a_container_says_whether_it_has_its_gpus(inside: Inside) -> None:
    look = InsideLook(images.SOCKET)
    assert look.gpu_lost(inside.found.handle) == ""
    inside.says(LOST, "255")
    assert look.gpu_lost(inside.found.handle) == LOST
    inside.says("GPU 0: H100", "0")
    assert look.gpu_lost(inside.found.handle) == ""


@pytest.mark.docker
def test_one_that_hangs_is_given_up_in_time_and_not_asked_again_before_it_came_back(inside: Inside) -> None:
    look = InsideLook(images.SOCKET, deadline=1.0)
    inside.says(LOST, "hang")
    began = time.monotonic()
    assert look.gpu_lost(inside.found.handle) == ""
    assert time.monotonic() - began < 5.0
    inside.says(LOST, "255")
    assert look.gpu_lost(inside.found.handle) == ""  # the first look still hangs in there
    assert images.docker("top", inside.found.handle).count("/bin/nvidia-smi") == 1
    (inside.bundle / "smi-release").touch()
    deadline = time.monotonic() + 10
    while not look.gpu_lost(inside.found.handle):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.docker
def test_an_image_without_the_tool_and_a_container_that_is_gone_tell_nothing(docker_rig: DockerRig) -> None:
    bare = Inside(docker_rig)
    look = InsideLook(images.SOCKET)
    assert look.gpu_lost(bare.found.handle) == ""
    images.docker("rm", "-f", bare.found.handle)
    assert look.gpu_lost(bare.found.handle) == ""
    assert InsideLook("unix:///nonexistent/docker.sock").gpu_lost(bare.found.handle) == ""
