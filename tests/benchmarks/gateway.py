"""Requests a second through the gateway as we configure it, beside a minimal hand-written Envoy and nginx alone.

All three answer from the same nginx, to the same wrk, in turns. Envoy's CPU for each request is told too: it does not
depend on who else uses the machine.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from quarterdeck_agent.drivers.envoy import EnvoyGateway, find_binary
from quarterdeck_agent.protocol import Limits
from quarterdeck_agent.routing import Route, Target, resources
from tests.benchmarks import bare_envoy
from tests.benchmarks.figures import Figure, median
from tests.benchmarks.hosts import cpu_seconds, first_answer
from tests.end_to_end.rig import free_port

ROUNDS = 7
SECONDS = 2
CONNECTIONS = 32
CONNECT = f"{CONNECTIONS} connections"


@dataclass
class Way:
    """One way to the upstream: where wrk asks, whose CPU counts, and what each round gave."""

    url: str
    pid: int
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    """Microseconds of CPU a request."""

    def round(self) -> None:
        before = cpu_seconds(self.pid)
        count, rate = load(self.url)
        self.rates.append(rate)
        self.costs.append((cpu_seconds(self.pid) - before) / count * 1e6)


def measure(folder: Path) -> Sequence[Figure]:
    """Rounds of all three in turns; the ratio is taken within a round."""
    with ExitStack() as ending:
        upstream = free_port()
        nginx_pid = ending.enter_context(nginx(folder / "nginx", upstream))
        ours = Way(*ending.enter_context(our_envoy(folder / "ours", upstream)))
        bare = Way(*ending.enter_context(_bare(folder / "bare", upstream)))
        direct = Way(f"http://127.0.0.1:{upstream}/", nginx_pid)
        ways = (ours, bare, direct)
        for way in ways:
            load(way.url, 1)
        for number in range(ROUNDS):
            for way in ways if number % 2 == 0 else ways[::-1]:
                way.round()
    ratios = [mine / theirs for mine, theirs in zip(ours.rates, bare.rates, strict=True)]
    beside = [mine / theirs for mine, theirs in zip(ours.rates, direct.rates, strict=True)]
    cost = statistics.median(bare.costs) / statistics.median(ours.costs)
    rate, plain = statistics.median(ours.rates), statistics.median(bare.rates)
    return [
        median(
            "gateway: requests/s ÷ minimal Envoy",
            ratios,
            at_least=0.9,
            baseline=f"{rate:,.0f}/s through ours, {plain:,.0f}/s through a minimal Envoy, {CONNECT}",
            needs_quiet=True,
        ),
        Figure(
            "gateway: the same, fastest round of each",
            max(ours.rates) / max(bare.rates),
            baseline=f"{max(ours.rates):,.0f}/s through ours, {max(bare.rates):,.0f}/s through a minimal Envoy",
        ),
        Figure(
            "gateway: CPU of a minimal Envoy ÷ ours",
            cost,
            baseline=f"{statistics.median(ours.costs):.1f} µs a request in ours, "
            f"{statistics.median(bare.costs):.1f} µs in a minimal Envoy",
        ),
        median(
            "gateway: requests/s ÷ nginx direct",
            beside,
            baseline=f"{statistics.median(direct.rates):,.0f}/s from nginx itself",
        ),
    ]


def load(url: str, seconds: int = SECONDS) -> tuple[int, float]:
    """Requests made and requests a second, as wrk tells. Every answer must be a 2xx."""
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url]
    said = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    count, rate = re.search(r"(\d+) requests in", said), re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert count and rate, said
    return int(count[1]), float(rate[1])


@contextmanager
def nginx(folder: Path, port: int) -> Iterator[int]:
    """An nginx that answers everything from memory; its worker's pid."""
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 1024; }}\n"
        "http { access_log off; keepalive_requests 1000000000; keepalive_timeout 60s;\n"
        f"client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};\n"
        f"uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json; return 200 '[]'; }} }} }}\n"
    )
    process = subprocess.Popen([binary, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        first_answer(("127.0.0.1", port), "/")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield int(children[0])
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def our_envoy(folder: Path, upstream: int) -> Iterator[tuple[str, int]]:
    """The gateway as the agent configures it, with one deployment of one replica; its address and its pid."""
    port = free_port()
    gateway = EnvoyGateway(folder, find_binary(), "127.0.0.1", port)
    route = Route("model", 1, Limits(), (Target(1, (("127.0.0.1", upstream),)),))

    async def start() -> None:
        await gateway.ensure()
        await gateway.apply(
            resources(
                [route],
                host="127.0.0.1",
                port=port,
                access_log=gateway.access_log,
                placeholder=gateway.placeholder,
            )
        )

    try:
        asyncio.run(start())
        first_answer(("127.0.0.1", port), "/model/")
        pid = gateway.pid
        assert pid is not None
        yield f"http://127.0.0.1:{port}/model/", pid
    finally:
        if pid := gateway.pid:
            os.kill(pid, signal.SIGKILL)


@contextmanager
def _bare(folder: Path, upstream: int) -> Iterator[tuple[str, int]]:
    port = free_port()
    config = bare_envoy.bootstrap(port, {"route_config": bare_envoy.routes({"route": {"cluster": "up"}})}, upstream)
    with bare_envoy.running(folder, port, config) as pid:
        yield f"http://127.0.0.1:{port}/", pid
