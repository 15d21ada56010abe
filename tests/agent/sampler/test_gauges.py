"""Gauges of replicas and of the host, read from the real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers import cgroup_folders
from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.cgroup import CgroupReader
from quarterdeck_agent.drivers.host import HostReader, clock_synchronised

BURN = """
import time
x = bytearray(40 << 20)
print('up', flush=True)
while time.process_time() < 0.3: pass
time.sleep(60)
"""


def found(pid: int, cgroups: dict[str, Path] | None = None, name: str = "r") -> Found:
    return Found(name, "digits", 1, "b", "v", f"{pid}:1", Life.RUNNING, pids=(pid,), cgroups=cgroups or {})


@pytest.fixture
def process() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "the condition did not come about in time"
        time.sleep(0.02)


def test_a_process_without_a_cgroup_is_read_from_proc(process: Callable[[str], subprocess.Popen[str]]) -> None:
    child, reader = process(BURN), CgroupReader()
    wait(lambda: (reader.read([found(child.pid)])["r"].cpu_seconds or 0) >= 0.25)
    usage = reader.read([found(child.pid)])["r"]
    assert usage.cpu_seconds is not None and usage.cpu_seconds < 10
    assert usage.memory is not None and 40 << 20 <= usage.memory < 200 << 20
    assert usage.processes == 1


def test_children_of_a_process_count_with_it(process: Callable[[str], subprocess.Popen[str]]) -> None:
    family = (
        "import subprocess, sys\n"
        "c = subprocess.Popen([sys.executable, '-c', 'x=bytearray(30<<20);print(1,flush=True);input()'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\nc.stdout.readline()\nprint('up', flush=True)\nc.wait()"
    )
    child = process(family)
    usage = CgroupReader().read([found(child.pid)])["r"]
    assert usage.processes == 2
    assert usage.memory is not None and usage.memory > 30 << 20


def test_a_process_that_is_gone_has_no_figures() -> None:
    assert CgroupReader().read([found(2**22 + 1)])["r"].cpu_seconds is None


def test_a_replica_that_ended_is_left_out() -> None:
    ended = Found("r", "digits", 1, "b", "v", "1:1", Life.EXITED)
    assert CgroupReader().read([ended]) == {}


@pytest.mark.skipif(
    os.geteuid() != 0 or cgroup_folders.is_unified() or not os.access("/sys/fs/cgroup/memory", os.W_OK),
    reason="needs cgroup v1 and the right to make groups",
)
def test_a_real_cgroup_version_1_is_read(process: Callable[[str], subprocess.Popen[str]]) -> None:
    child = process(BURN)
    name = f"quarterdeck-test-{child.pid}"
    folders = {ours: cgroup_folders.mount_of(theirs) / name for ours, theirs in cgroup_folders.CONTROLLERS.items()}
    try:
        for folder in folders.values():
            folder.mkdir()
            (folder / "cgroup.procs").write_text(str(child.pid))
        (folders["memory"] / "memory.limit_in_bytes").write_text(str(256 << 20))
        reader = CgroupReader()
        wait(lambda: (reader.read([found(child.pid, folders)])["r"].cpu_seconds or 0) > 0)
        usage = reader.read([found(child.pid, folders)])["r"]
        assert (usage.memory_limit, usage.processes) == (256 << 20, 1)
        assert usage.memory is not None
        reader.close()
    finally:
        child.kill()
        child.wait()
        for folder in folders.values():
            wait(lambda folder=folder: not (folder / "cgroup.procs").read_text())  # type: ignore[misc]
            folder.rmdir()


def test_cgroup_version_2_files_are_read_as_the_kernel_documents_them(tmp_path: Path) -> None:
    for name, text in {
        "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
        "memory.current": "1000\n",
        "memory.stat": "anon 500\nfile 500\ninactive_file 300\n",
        "memory.max": "max\n",
        "pids.current": "4\n",
    }.items():
        (tmp_path / name).write_text(text)
    reader = CgroupReader()
    usage = reader.read([found(os.getpid(), {"unified": tmp_path})])["r"]
    assert (usage.cpu_seconds, usage.memory, usage.memory_limit, usage.processes) == (2.5, 700, None, 4)
    (tmp_path / "memory.max").write_text("4096\n")
    assert reader.read([found(os.getpid(), {"unified": tmp_path})])["r"].memory_limit == 4096
    reader.close()


def test_descriptors_of_replicas_that_left_are_closed(tmp_path: Path) -> None:
    for name in ("cpu.stat", "memory.current", "memory.max", "memory.stat", "pids.current"):
        (tmp_path / name).write_text("usage_usec 1\n" if name == "cpu.stat" else "1\n")
    before = open_descriptors()
    reader = CgroupReader()
    reader.read([found(os.getpid(), {"unified": tmp_path})])
    assert open_descriptors() > before
    reader.read([])
    assert open_descriptors() == before


def test_host_gauges_agree_with_the_machine(tmp_path: Path) -> None:
    reader = HostReader(tmp_path, SystemClock())
    first = reader.read()
    assert first.cpu is None and first.agent_cpu is None
    ends = time.process_time() + 0.2
    while time.process_time() < ends:
        pass
    second = reader.read()
    assert second.cpu is not None and 0.05 < second.cpu <= 1
    assert second.agent_cpu is not None and second.agent_cpu > 0.2
    assert second.memory_total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert second.memory_used is not None and 0 < second.memory_used < second.memory_total
    assert second.disk_total is not None and second.disk_used is not None and second.disk_used <= second.disk_total
    assert second.agent_memory is not None and second.agent_memory > 1 << 20


def test_a_data_folder_that_is_gone_leaves_only_the_disk_unmeasured(tmp_path: Path) -> None:
    gauges = HostReader(tmp_path / "gone", SystemClock()).read()
    assert gauges.disk_total is None
    assert gauges.memory_total is not None


def test_whether_the_clock_is_synchronised_is_told_or_unknown() -> None:
    assert clock_synchronised() in (True, False, None)
