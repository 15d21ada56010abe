"""The image of the Python runtimes, built from this very interpreter, works as nobody on a read-only root."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from quarterdeck_agent import runtime_image
from quarterdeck_agent.drivers.base import Progress
from tests import images

pytestmark = [pytest.mark.docker, pytest.mark.torch]

HARDENED = ("--rm", "--network=none", "--read-only", "--user=65534:65534", "--cap-drop=ALL", "--tmpfs=/tmp:noexec")


@pytest.fixture(scope="module")
def built() -> Iterator[tuple[str, list[Progress]]]:
    tag, progress = f"quarterdeck-test/runtime:{uuid.uuid4().hex[:8]}", list[Progress]()
    began = time.monotonic()
    runtime_image.build(images.SOCKET, tag, progress.append)
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
