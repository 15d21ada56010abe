"""What all tests share: whether there is a Docker Engine, and that its absence is loud or a failure, never silent."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from quarterdeck_agent.drivers import docker_socket
from tests.nvml.fake import FakeNvml, compiler, loaded

DOCKER_URL = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
REQUIRED = os.environ.get("QUARTERDECK_REQUIRE_DOCKER") == "1"


def _docker_missing() -> str | None:
    """Why there is no Docker Engine to test with, `None` when there is one."""
    try:
        docker_socket.get(DOCKER_URL, "/version")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"no Docker Engine answers on {DOCKER_URL} ({type(error).__name__})"
    return None if shutil.which("busybox") else "busybox is not installed, and test images are made of it"


def pytest_configure() -> None:
    """Begin only with the engine that was promised, and let ctrl-c reach what tests start.

    In the background of a shell ctrl-c is ignored, and children inherit that.
    """
    if REQUIRED and (missing := _docker_missing()) is not None:
        raise pytest.UsageError(f"QUARTERDECK_REQUIRE_DOCKER=1, but {missing}")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of containers out where there is no engine."""
    of_docker = [item for item in items if item.get_closest_marker("docker")]
    if not of_docker:
        return
    missing = _docker_missing()
    if missing is None:
        return
    for item in of_docker:
        item.add_marker(pytest.mark.skip(reason=f"{LEFT_OUT} {missing}"))


LEFT_OUT = "left out:"
"""How the reasons begin that are told at the end as well, in large."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        str(report.longrepr[2]).partition(LEFT_OUT)[2].strip()
        for report in terminalreporter.stats.get("skipped", ())
        if isinstance(report.longrepr, tuple) and LEFT_OUT in str(report.longrepr[2])
    )
    if reasons:
        terminalreporter.section("not tested", sep="!", red=True, bold=True)
        for reason, count in reasons.items():
            terminalreporter.line(f"{count} tests were LEFT OUT: {reason}")


@pytest.fixture
def nvml_compiler() -> str:
    """The C compiler that the fake NVML is built with; its absence is loud, or a failure where the machine is ours."""
    found = compiler()
    if found is None:
        text = "no C compiler to build the fake NVML of the tests of GPUs with (install gcc and libc6-dev)"
        if REQUIRED:
            pytest.fail(text)
        pytest.skip(f"{LEFT_OUT} {text}")
    return found


@pytest.fixture
def fake_nvml(tmp_path: Path, nvml_compiler: str) -> Iterator[FakeNvml]:
    """A machine with one idle H100, loaded into this process."""
    with loaded(tmp_path / "nvml") as fake:
        yield fake


@pytest.fixture(scope="session")
def docker_url() -> Iterator[str]:
    """Where the Docker Engine of the tests answers."""
    yield DOCKER_URL
