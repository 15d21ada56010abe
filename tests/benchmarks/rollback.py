"""How long a warm rollback takes under load, from the call to every answer coming from the old revision.

Beside it: a call that changes nothing, and how long Envoy itself takes from a new route file to a new answer.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median as middle

from tests.benchmarks import bare_envoy
from tests.benchmarks.figures import Figure, median
from tests.benchmarks.hosts import ask, finished
from tests.end_to_end.rig import Agent, Load, agent, free_port, until
from tests.models import trivial_bundle

ROLLBACKS = 10
BOUND = 0.3


def measure(folder: Path) -> Sequence[Figure]:
    """Ten rollbacks to and fro under load."""
    with agent(folder / "host") as host:
        for version in ("1", "2"):
            host.must("push", str(trivial_bundle(folder / version, "toy", version)))
            body = {"version": f"toy:{version}", "dwell": 0.0, "warm": 3600.0}
            finished(host, ask(host, "PUT", "/v1/deployments/toy", body))
        no_op = middle(_timed(lambda: host.api("GET", "/v1/hello")) for _ in range(30))
        with Load(host, "toy") as load:
            seconds = [_rollback(host, load, version) for version in ("1", "2") * (ROLLBACKS // 2)]
    with own_envoy(folder / "envoy") as change:
        envoy = middle(change(number) for number in range(1, ROLLBACKS + 1))
    against = f"a call that changes nothing {no_op * 1000:.1f} ms, Envoy's own switch {envoy * 1000:.1f} ms"
    milliseconds = [value * 1000 for value in seconds]
    return [
        median("warm rollback", milliseconds, "ms", at_most=BOUND * 1000, baseline=against, needs_quiet=True),
        Figure(
            "warm rollback: the slowest",
            max(milliseconds),
            "ms",
            at_most=BOUND * 1000,
            baseline=against,
            needs_quiet=True,
        ),
        Figure(
            "warm rollback: failed requests",
            len(load.failures),
            at_most=0,
            baseline=f"{len(load.answers):,} answered",
        ),
    ]


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _rollback(host: Agent, load: Load, version: str) -> float:
    """Seconds from the call to the first answer after which all are from `version`."""
    began = time.monotonic()
    operation = ask(host, "POST", "/v1/deployments/toy/rollback", {})
    finished(host, operation)
    seen = len(load.answers)
    until(lambda: len(load.answers) > seen + 100, "calls go on")
    answers = sorted(item for item in load.answers if item[0] >= began)
    wrong = [at for at, answer in answers if answer["version"] != version]
    last = max(wrong, default=began)
    return next(at for at, answer in answers if at > last) - began


@contextmanager
def own_envoy(folder: Path) -> Iterator[Callable[[int], float]]:
    """An Envoy that reads its routes from a file. Calling what it gives replaces that file and times the change."""
    port, path = free_port(), folder / "routes.json"
    folder.mkdir()

    def write(number: int) -> None:
        answer = {"direct_response": {"status": 200, "body": {"inline_string": str(number)}}}
        resource = {"@type": bare_envoy.ROUTES, **bare_envoy.routes(answer)}
        made = folder / ".new"
        made.write_text(json.dumps({"version_info": str(number), "resources": [resource]}))
        made.replace(path)

    def change(number: int) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            began = time.perf_counter()
            write(number)
            while True:
                connection.request("GET", "/")
                if connection.getresponse().read() == str(number).encode():
                    return time.perf_counter() - began
        finally:
            connection.close()

    write(0)
    source = {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}
    routing = {"rds": {"route_config_name": "all", "config_source": source}}
    with bare_envoy.running(folder, port, bare_envoy.bootstrap(port, routing)):
        yield change
