"""The image of the Python runtimes, built from this very interpreter, works as nobody on a read-only root."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from quarterdeck_agent import runtime_image
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import Progress
from quarterdeck_agent.drivers.docker import DockerEngine
from quarterdeck_agent.errors import EngineError
from tests import images

pytestmark = [pytest.mark.docker, pytest.mark.torch]

HARDENED = ("--rm", "--network=none", "--read-only", "--user=65534:65534", "--cap-drop=ALL", "--tmpfs=/tmp:noexec")


@pytest.fixture(scope="module")
def built() -> Iterator[tuple[str, list[Progress]]]:
    tag, progress = f"quarterdeck-test/runtime:{uuid.uuid4().hex[:8]}", list[Progress]()
    began = time.monotonic()
    runtime_image.build(images.SOCKET, tag, progress.append, rebuild=True)
    size = int(images.docker("inspect", "-f", "{{.Size}}", tag))
    print(f"runtime image: {size / 1e6:.0f} MB in {time.monotonic() - began:.1f} s")
    yield tag, progress
    images.docker("rmi", "-f", tag, check=False)


def run(tag: str, code: str) -> str:
    return images.docker("run", *HARDENED, tag, "python3", "-c", code)


def test_it_imports_torch_litserve_and_our_runtime_as_nobody_on_a_read_only_root(
    built: tuple[str, list[Progress]],
) -> None:
    said = run(built[0], "import torch, litserve, quarterdeck_runtime; print(torch.ones(3).sum().item())")
    assert said == "3.0"


def test_its_standard_library_has_its_shared_libraries(built: tuple[str, list[Progress]]) -> None:
    code = "import ssl, ctypes, lzma, bz2, zlib, pwd, os; print(pwd.getpwuid(os.getuid()).pw_name, os.getcwd())"
    assert run(built[0], code) == "nobody /model"


def test_building_tells_how_far_it_has_come(built: tuple[str, list[Progress]]) -> None:
    last = built[1][-1]
    assert last.total is not None
    assert last.done == last.total > 100_000_000


def test_an_image_made_of_the_same_files_is_named_and_not_built_again(built: tuple[str, list[Progress]]) -> None:
    other, progress = f"quarterdeck-test/again:{uuid.uuid4().hex[:8]}", list[Progress]()
    try:
        made = runtime_image.build(images.SOCKET, other, progress.append)
        assert progress == []
        label = f'{{{{index .Config.Labels "{runtime_image.INPUTS}"}}}}'
        assert images.docker("inspect", "-f", label, made) == images.docker("inspect", "-f", label, built[0])
    finally:
        images.docker("rmi", other, check=False)


def test_other_sources_make_another_image_and_compiled_modules_do_not(tmp_path: Path) -> None:
    source, compiled = tmp_path / "a.py", tmp_path / "a.cpython-311.pyc"
    source.write_text("1")
    first = runtime_image.digest({"a.py": source})
    compiled.write_bytes(b"x")
    assert runtime_image.digest({"a.py": source, "a.pyc": compiled}) == first
    source.write_text("11")
    assert runtime_image.digest({"a.py": source}) != first


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_image, "NEEDED", ("torch", "quarterdeck-no-such-package"))
    with pytest.raises(EngineError, match="it has no quarterdeck-no-such-package") as raised:
        runtime_image.build(images.SOCKET, "quarterdeck-test/never:1", lambda _: None)
    assert "quarterdeck[torch]" in (raised.value.hint or "")


def test_without_a_docker_engine_it_says_where_it_asked(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"No Docker Engine answers at .*nobody\.sock: .*No such file"):
        runtime_image.build(f"unix://{tmp_path}/nobody.sock", "quarterdeck-test/never:1", lambda _: None)


def test_a_missing_runtime_image_is_never_pulled_and_the_failure_says_how_to_build_it() -> None:
    absent = f"{runtime_image.REPOSITORY}:absent-{uuid.uuid4().hex[:8]}"

    async def resolve() -> None:
        engine = DockerEngine(images.SOCKET, uuid.uuid4().hex, SystemClock())
        try:
            await engine.resolve(absent, lambda _: None)
        finally:
            await engine.close()

    with pytest.raises(EngineError, match="never pulled") as raised:
        asyncio.run(resolve())
    assert raised.value.hint == f"Build it: qd-agent runtime-image --tag {absent}"
