"""What all tests share: whether there is a Docker Engine, and that its absence is loud or a failure, never silent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nvml.fake import FakeNvml, compiler, loaded

DOCKER_URL = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
REQUIRED = os.environ.get("QUARTERDECK_REQUIRE_DOCKER") == "1"


def _docker_missing() -> str | None:
    """Why there is no Docker Engine to test with, `None` when there is one."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.APIClient(base_url=DOCKER_URL, timeout=5)
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as error:
        return f"no Docker Engine answers on {DOCKER_URL} ({type(error).__name__})"
    return None if shutil.which("busybox") else "busybox is not installed, and test images are made of it"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of containers out where there is no engine, or fail them where one was promised."""
    of_docker = [item for item in items if item.get_closest_marker("docker")]
    if not of_docker:
        return
    missing = _docker_missing()
    if missing is None:
        return
    if REQUIRED:
        raise pytest.UsageError(f"QUARTERDECK_REQUIRE_DOCKER=1, but {missing}")
    config.stash[LEFT_OUT] = f"{len(of_docker)} tests of containers were LEFT OUT: {missing}"
    for item in of_docker:
        item.add_marker(pytest.mark.skip(reason=missing))


LEFT_OUT = pytest.StashKey[str]()
NO_COMPILER = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    missing = [text for key in (LEFT_OUT, NO_COMPILER) if (text := config.stash.get(key, None))]
    if missing:
        terminalreporter.section("not tested", sep="!", red=True, bold=True)
        for text in missing:
            terminalreporter.line(text)


@pytest.fixture
def nvml_compiler(request: pytest.FixtureRequest) -> str:
    """The C compiler that the fake NVML is built with; its absence is loud, or a failure where the machine is ours."""
    found = compiler()
    if found is None:
        text = "tests of GPUs were LEFT OUT: no C compiler to build the fake NVML with (install gcc and libc6-dev)"
        if REQUIRED:
            pytest.fail(text)
        request.config.stash[NO_COMPILER] = text
        pytest.skip(text)
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
