"""As little as an Envoy can be told, all else as it has it by itself: what our configuration is compared with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quarterdeck_agent.drivers.envoy import find_binary
from tests.benchmarks.hosts import first_answer

Json = dict[str, object]

TYPES = "type.googleapis.com/envoy"
ROUTES = f"{TYPES}.config.route.v3.RouteConfiguration"
_FILTERS = f"{TYPES}.extensions.filters"


def routes(action: Mapping[str, object]) -> Json:
    """One route for everything."""
    return {
        "name": "all",
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}],
    }


def bootstrap(port: int, routing: Mapping[str, object], upstream: int | None = None) -> Json:
    """A listener on loopback with this `routing`, and a cluster `up` where there is an upstream."""
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        **routing,
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"}}],
    }
    listener = {
        "name": "in",
        **_address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = [] if upstream is None else [_cluster(upstream)]
    return {
        "node": {"id": "bare", "cluster": "bare"},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _cluster(port: int) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": _address(port)}]}]
    return {"name": "up", "type": "STATIC", "load_assignment": {"cluster_name": "up", "endpoints": endpoints}}


def _address(port: int) -> Json:
    return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}


@contextmanager
def running(folder: Path, port: int, config: Json) -> Iterator[int]:
    """That Envoy, answering on its port, with one worker as ours has; its pid."""
    folder.mkdir(exist_ok=True)
    (folder / "envoy.json").write_text(json.dumps(config))
    words = [find_binary(), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--disable-hot-restart"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*words, "--log-level", "warning"], stdout=log, stderr=log)
    try:
        first_answer(("127.0.0.1", port), "/")
        yield process.pid
    finally:
        process.kill()
        process.wait(10)
