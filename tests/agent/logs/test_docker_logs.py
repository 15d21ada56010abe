"""What containers print, collected from a real Docker Engine."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.docker_logs import DockerLogCollector
from quarterdeck_agent.logs import LogStore

pytestmark = pytest.mark.docker

URL = "unix:///var/run/docker.sock"
RUN = uuid.uuid4().hex[:10]


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "the condition did not come about in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    busybox = Path("/bin/busybox").read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("bin/busybox", "bin/sh"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(busybox), 0o755
            tar.addfile(entry, io.BytesIO(busybox))
    tag = f"quarterdeck-test-logs:{RUN}"
    subprocess.run(["docker", "import", "-", tag], input=packed.getvalue(), capture_output=True, timeout=60, check=True)
    yield tag
    docker("rmi", "-f", tag)


@pytest.fixture
def start(image: str) -> Iterator[Callable[[str], str]]:
    names: list[str] = []

    def run(script: str) -> str:
        names.append(f"quarterdeck-test-logs-{RUN}-{len(names)}-{uuid.uuid4().hex[:6]}")
        return docker("run", "-d", "--name", names[-1], "--network", "none", image, "/bin/busybox", "sh", "-c", script)

    yield run
    for name in names:
        docker("rm", "-f", name)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    store = LogStore(tmp_path)
    yield store
    store.close()


def found(handle: str, life: Life = Life.RUNNING) -> Found:
    return Found("replica", "digits", 1, "body", "version", handle, life)


def collector(store: LogStore, **sizes: int) -> DockerLogCollector:
    return DockerLogCollector(URL, lambda it: store.replica_folder(it.deployment, it.revision, it.id), **sizes)


def texts(store: LogStore, n: int = 100_000) -> tuple[str, ...]:
    return store.last_lines("digits", 1, "replica", n)


def test_both_streams_arrive_with_their_times_and_bytes(store: LogStore, start: Callable[[str], str]) -> None:
    handle = start(r"echo out; sleep 0.1; echo err >&2; sleep 0.1; printf 'bad \377 byte\n'; printf 'no newline'")
    with_docker = collector(store)
    with_docker.update([found(handle)])
    wait(lambda: len(texts(store)) == 4)
    assert texts(store) == ("out", "err", "bad \ufffd byte", "no newline")  # Docker's own replacement
    lines = [entry for tape in store.tapes("digits") for entry in map(tape.parse, (e.raw for e in tape.backwards()))]
    assert [line.stream for line in reversed(lines)] == ["stdout", "stderr", "stdout", "stdout"]
    assert all(abs(time.time() - line.at.timestamp()) < 60 for line in lines)
    with_docker.close()


def test_an_agent_that_comes_back_misses_and_repeats_nothing(store: LogStore, start: Callable[[str], str]) -> None:
    count = 3000
    script = f"i=0; while [ $i -lt {count} ]; do echo line $i; echo err $i >&2; i=$((i+1)); done; sleep 0.3"
    handle = start(script)
    for _ in range(6):
        agent = collector(store)
        agent.update([found(handle)])
        before = len(texts(store))
        wait(lambda seen=before: len(texts(store)) > seen or len(texts(store)) >= 2 * count)  # type: ignore[misc]
        agent.close()
    docker("wait", handle)
    last = collector(store)
    last.update([found(handle, Life.EXITED)])
    assert last.drained(handle, 20)
    last.close()
    lines = texts(store)
    assert sorted(lines) == sorted([f"line {n}" for n in range(count)] + [f"err {n}" for n in range(count)])
    assert [line for line in lines if line.startswith("line")] == [f"line {n}" for n in range(count)]


def test_an_ended_container_is_read_to_its_last_line_also_when_it_ended_unseen(
    store: LogStore, start: Callable[[str], str]
) -> None:
    handle = start("echo first; echo last")
    docker("wait", handle)
    agent = collector(store)
    agent.update([found(handle, Life.EXITED)])
    assert agent.drained(handle, 10)
    assert texts(store) == ("first", "last")
    agent.close()


def test_a_container_that_ends_while_read_is_drained(store: LogStore, start: Callable[[str], str]) -> None:
    handle = start("echo one; sleep 1; echo two")
    agent = collector(store)
    agent.update([found(handle)])
    wait(lambda: texts(store) == ("one",))
    docker("wait", handle)
    agent.update([found(handle, Life.EXITED)])
    assert agent.drained(handle, 10)
    assert texts(store) == ("one", "two")
    agent.close()


def test_a_container_that_is_gone_ends_its_reader(store: LogStore) -> None:
    agent = collector(store)
    agent.update([found("0" * 64)])
    assert agent.drained("0" * 64, 10)
    agent.close()


def test_long_lines_are_cut_and_a_flood_stays_within_the_cap(store: LogStore, start: Callable[[str], str]) -> None:
    handle = start(
        "head -c 40000 /dev/zero | tr '\\0' x; echo; yes a line of a flood that does not end | head -c 1500000"
    )
    docker("wait", handle)
    agent = collector(store, file_size=200_000, file_count=3)
    agent.update([found(handle, Life.EXITED)])
    assert agent.drained(handle, 30)
    agent.close()
    folder = store.replica_folder("digits", 1, "replica")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3 * 200_000 + 1000
    assert [text for text in texts(store) if "log cap" not in text][-1].startswith("a line of a flood")
    assert max(len(text) for text in texts(store)) <= 16 * 1024
