"""A deploy of a trivial container beside `docker run` of the same image, each from the call to the first answer.

The image is on the host, there is no dwell and no golden request; both serve the same page with busybox.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from statistics import median as middle

from tests.benchmarks.figures import Figure, median
from tests.benchmarks.hosts import ask, finished, first_answer
from tests.end_to_end.rig import Agent, agent, until
from tests.images import DOCKER, SOCKET, busybox_image, docker
from tests.models import toml

ROUNDS = 9
PORT = 8000
SERVE = ("/bin/httpd", "-f", "-p", str(PORT), "-h", "/www")


def measure(folder: Path) -> Sequence[Figure]:
    """Deploys and `docker run`s in turns."""
    with busybox_image() as image, agent(folder / "host", engine="docker") as host:
        bundle = folder / "page"
        bundle.mkdir()
        settings = {"image": image, "command": list(SERVE), "port": PORT}
        (bundle / "model.toml").write_text(
            toml({"name": "page", "version": "1", "runtime": "image", "settings": settings})
        )
        host.must("push", str(bundle))
        network = f"quarterdeck-bench-{uuid.uuid4().hex[:8]}"
        subnet = f"10.213.{uuid.uuid4().int % 250}"
        docker("network", "create", "--subnet", f"{subnet}.0/24", network)
        try:
            _deploy(host, "warm-up")
            _docker_run(image, network, f"{subnet}.9")
            deploys, runs = [], []
            for number in range(ROUNDS):
                deploys.append(_deploy(host, f"page{number}"))
                runs.append(_docker_run(image, network, f"{subnet}.{10 + number}"))
        finally:
            docker("network", "rm", network, check=False)
    against = f"docker run {_told(runs)}, a deploy {_told(deploys)}"
    return [
        median(
            "deploy of a container ÷ docker run, in pairs",
            [mine / theirs for mine, theirs in zip(deploys, runs, strict=True)],
            at_most=1.3,
            baseline=against,
            needs_quiet=True,
        ),
        Figure("deploy of a container ÷ docker run, lowest of each", min(deploys) / min(runs), baseline=against),
    ]


def _told(seconds: Sequence[float]) -> str:
    return f"{middle(seconds) * 1000:.0f} ms (lowest {min(seconds) * 1000:.0f})"


def _deploy(host: Agent, name: str) -> float:
    """Seconds from the call to the first answer through the gateway; the deployment is taken away again."""
    began = time.perf_counter()
    operation = ask(host, "PUT", f"/v1/deployments/{name}", {"version": "page:1", "dwell": 0.0, "golden": False})
    seconds = first_answer(("127.0.0.1", host.port), f"/{name}/") - began
    finished(host, operation)
    ask(host, "DELETE", f"/v1/deployments/{name}")
    until(lambda: host.api("GET", f"/v1/deployments/{name}")[0] == 404, f"{name} is gone")
    return seconds


def _docker_run(image: str, network: str, address: str) -> float:
    """Seconds from `docker run` to the first answer of the container itself; it is taken away again."""
    name = f"quarterdeck-bench-{uuid.uuid4().hex[:12]}"
    words = [DOCKER, "-H", SOCKET, "run", "-d", "--name", name, "--network", network, "--ip", address, image, *SERVE]
    began = time.perf_counter()
    try:
        # Asking before the container is there would leave the kernel waiting a second for its address (ARP).
        subprocess.run(words, stdout=subprocess.DEVNULL, timeout=60, check=True)
        return first_answer((address, PORT), "/") - began
    finally:
        docker("rm", "-f", name)
