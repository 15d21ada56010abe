"""A container that loses its GPU, as after `systemctl daemon-reload`, is noticed from inside and made anew.

The daemon is the test's own and real; NVIDIA's hook, `nvidia-smi` and the driver are pretended.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quarterdeck_agent.runtime_image import PYTHON
from tests import images
from tests.end_to_end.bundles import QUICK, push
from tests.end_to_end.containers import EVERYWHERE, Daemon, python_image
from tests.end_to_end.rig import Agent, until
from tests.nvml.fake import FakeNvml

pytestmark = [pytest.mark.docker, pytest.mark.envoy, pytest.mark.usefixtures("nvml_compiler")]

SAYS = "Failed to initialize NVML: Unknown Error"
SMI = f"""#!/{PYTHON}/bin/python3
import os, sys
lost = os.path.exists("/model/gpus-lost")
print({SAYS!r} if lost else "GPU 0: H100")
sys.exit(255 if lost else 0)
"""


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker offers GPUs where it finds this program when it starts; it would put the devices into a container."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-container-runtime-hook").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "nvidia-container-runtime-hook").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture
def daemon(hook: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("d")) as running:  # a socket's path must be short
        yield running


@pytest.fixture
def image(daemon: Daemon, tmp_path: Path) -> Iterator[str]:
    """The image of the models, with an `nvidia-smi` in it."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    with python_image(daemon.address) as tag:
        made = images.docker("create", tag, "true", host=daemon.address)
        images.docker("cp", str(tmp_path / "nvidia-smi"), f"{made}:/{PYTHON}/bin/nvidia-smi", host=daemon.address)
        yield images.docker("commit", made, "quarterdeck-test/with-smi:1", host=daemon.address)


def test_a_container_that_lost_its_gpu_is_made_anew(daemon: Daemon, image: str, tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path / "nvml")
    host = Agent(tmp_path / "host", "docker", {"docker_url": daemon.address}, variables=nvml.env)
    try:
        host.start()
        asks = {"gpus": 1, "vram": "20GiB"}
        label = push(host, tmp_path, "1", env=EVERYWHERE, image="quarterdeck-test/with-smi:1", resources=asks)
        host.must("deploy", label, *QUICK)
        (first,) = host.deployment("toy")["replicas"]
        assert len(first["gpus"]) == 1
        (bundle,) = (path for path in (host.data_folder / "staged").iterdir() if path.is_dir())
        (bundle / "gpus-lost").touch()

        def another() -> bool:
            return all(each["handle"] != first["handle"] for each in host.deployment("toy")["replicas"])

        until(another, "the container is ended", 60)
        (bundle / "gpus-lost").unlink()
        until(lambda: host.deployment("toy")["replicas_ready"] == 1, "another one serves", 30)
        (second,) = host.deployment("toy")["replicas"]
        assert second["gpus"] == first["gpus"]
        failure = host.revisions("toy")[0]["failure"]
        assert failure["reason"] == "gpu_lost" and SAYS in failure["message"]
        assert host.call("toy")[0] == 200
    finally:
        host.clear()
