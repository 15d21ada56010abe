"""Gateways whose Envoy ends with the test, however the test ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quarterdeck_agent.drivers.envoy import EnvoyGateway, find_binary
from quarterdeck_agent.drivers.envoy_process import start_time
from tests.agent.gateway.parts import free_port

MakeGateway = Callable[..., EnvoyGateway]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets, of which every gateway below it is ended."""
    root = Path(tempfile.mkdtemp(prefix="qdgw"))
    try:
        yield root
    finally:
        for record in root.glob("**/envoy.pid"):
            found = json.loads(record.read_text())
            if start_time(found["pid"]) == found["start_time"]:
                os.kill(found["pid"], signal.SIGKILL)
        shutil.rmtree(root)


@pytest.fixture
def make_gateway(folder: Path) -> MakeGateway:
    def make(name: str = "g", port: int | None = None, **options: object) -> EnvoyGateway:
        port = free_port() if port is None else port
        return EnvoyGateway(folder / name, find_binary(), "127.0.0.1", port, **options)  # type: ignore[arg-type]

    return make
