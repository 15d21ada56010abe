"""What /proc tells of the processes on a GPU, and what keeps a look at them cheap and bounded."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from quarterdeck_agent.drivers import processes
from quarterdeck_agent.drivers.processes import ProcessReader, UserNames


@dataclass
class Table:
    """A /proc of the test's own."""

    root: Path

    def add(
        self,
        pid: int,
        *,
        parent: int = 1,
        session: int | None = None,
        start: int = 100,
        name: str = "python3",
        argv: tuple[str, ...] = ("/usr/bin/python3", "--token=secret"),
        uid: int = 1000,
        cgroup: str = "0::/user.slice\n",
    ) -> None:
        folder = self.root / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        between = " 0" * 15
        stat = f"{pid} ({name}) S {parent} {pid} {session or pid}{between} {start} 0 0\n"
        (folder / "stat").write_text(stat)
        (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in argv))
        (folder / "status").write_text(f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (folder / "cgroup").write_text(cgroup)

    def reader(self, **options: float) -> ProcessReader:
        return ProcessReader(self.root, user_of=lambda uid: f"user{uid}", **options)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def test_a_process_is_told_by_user_command_kin_and_groups(table: Table) -> None:
    table.add(40, start=4, name="shim")
    table.add(41, parent=40, session=41, start=5)
    table.add(42, parent=41, session=41, start=6, cgroup="4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n")
    found = table.reader().read([42, 43])
    assert set(found) == {42}, "a pid that is not here is unknown"
    assert (found[42].user, found[42].command, found[42].start) == ("user1000", "python3", 6)
    assert found[42].kin == {(42, 6), (41, 5), (40, 4)}
    assert found[42].groups == {"docker", "abc"}


@pytest.mark.parametrize(
    ("argv", "name", "told"),
    [
        (("/opt/venv/bin/python", "-c", "secret"), "python", "python"),
        (("VLLM::EngineCore",), "python3", "VLLM::EngineCore"),
        (("sshd: ada [secret]",), "sshd", "sshd"),
        (("serve --key=/a/secret",), "serve", "serve"),
        ((), "kworker/0:1", "kworker/0:1"),
        (("a) S 1 (b",), "a) S 1 (b", "a) S 1 (b"),
        (("/bin/\x1b[2Jevil",), "evil", "�[2Jevil"),
        (("/bin/dir/",), "dir", "dir"),
    ],
)
def test_a_command_is_told_without_arguments_also_when_it_named_itself(
    table: Table, argv: tuple[str, ...], name: str, told: str
) -> None:
    table.add(42, argv=argv, name=name)
    assert table.reader().read([42])[42].command == told


def test_an_orphan_keeps_the_kin_it_had(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.add(41, start=5)
    table.add(42, parent=41, start=6)
    reader = table.reader()
    reader.read([42])
    table.add(42, parent=1, start=6)
    monkeypatch.setattr(processes, "REFRESH", 0.0)
    assert reader.read([42])[42].kin == {(41, 5), (42, 6)}


def test_a_number_that_went_to_another_process_is_another_process(table: Table) -> None:
    table.add(41, start=5)
    table.add(42, parent=41, start=6)
    reader = table.reader()
    reader.read([42])
    table.add(42, start=99, argv=("other",), uid=7)
    found = reader.read([42])[42]
    assert (found.user, found.command) == ("user7", "other") and found.kin == {(42, 99)}


def test_a_steady_process_costs_one_file_until_it_is_looked_at_anew(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add(42)
    reader = table.reader()
    reader.read([42])
    opened: list[str] = []
    real = os.open

    def counting(path: str, flags: int) -> int:
        opened.append(Path(path).name)
        return real(path, flags)

    monkeypatch.setattr(os, "open", counting)
    reader.read([42])
    assert opened == ["stat"]
    monkeypatch.setattr(processes, "REFRESH", 0.0)
    table.add(42, argv=("renamed",))
    assert reader.read([42])[42].command == "renamed"


def test_a_loop_of_parents_and_a_broken_table_end_the_search(table: Table) -> None:
    table.add(41, parent=42)
    table.add(42, parent=41)
    table.add(43, parent=44)
    table.add(45)
    (table.root / "45/stat").write_text("45 (x) S 1")
    found = table.reader().read([42, 43, 45])
    assert found[42].kin == {(41, 100), (42, 100)} and found[43].kin == {(43, 100)} and 45 not in found


def test_the_processes_of_this_machine_are_read_as_they_are() -> None:
    code = (
        "import os, time\nif os.fork() == 0:\n os.setsid(); print(os.getpid(), flush=True); time.sleep(60)\nos.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            found = asyncio.run(ProcessReader().look([child, 1 << 22, 0, -1]))
            assert set(found) == {child}
            assert found[child].user == pwd.getpwuid(os.geteuid()).pw_name
            assert found[child].command == Path(sys.executable).name
            assert {os.getpid(), parent.pid, child} <= {pid for pid, _ in found[child].kin}
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def test_a_table_that_hangs_delays_nobody_and_what_was_known_stands(table: Table, gate: threading.Event) -> None:
    table.add(42)
    looks: list[tuple[int, ...]] = []

    class Hanging(ProcessReader):
        def read(self, pids: Iterable[int]) -> dict[int, processes.HostProcess]:
            looks.append(tuple(pids))
            if len(looks) == 2:
                gate.wait(30)
            return super().read(pids)

    async def run() -> None:
        reader = Hanging(table.root, deadline=0.05, user_of=str)
        assert set(await reader.look([42])) == {42}
        table.add(43)
        began = time.monotonic()
        for _ in range(5):
            assert set(await reader.look([42, 43])) == {42}
        assert time.monotonic() - began < 5 and len(looks) == 2, "one call hangs, no other is begun"
        gate.set()
        deadline = time.monotonic() + 20
        while set(await reader.look([42, 43])) != {42, 43}:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_look_that_fails_is_told_and_the_next_one_is_made(table: Table) -> None:
    class Failing(ProcessReader):
        broken = True

        def read(self, pids: Iterable[int]) -> dict[int, processes.HostProcess]:
            if self.broken:
                raise OSError("no /proc")
            return super().read(pids)

    async def run() -> None:
        table.add(42)
        reader = Failing(table.root, user_of=str)
        with pytest.raises(OSError, match="no /proc"):
            await reader.look([42])
        reader.broken = False
        assert set(await reader.look([42])) == {42}

    asyncio.run(run())


def test_a_directory_of_users_that_does_not_answer_costs_a_moment_once(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "NAME_WAIT", 0.01)
    asked: list[int] = []

    def slow(uid: int) -> str:
        asked.append(uid)
        gate.wait(30)
        return "ada"

    names = UserNames(slow)
    assert [names(7) for _ in range(3)] == ["7"] * 3 and asked == [7]
    gate.set()
    deadline = time.monotonic() + 20
    while names(7) != "ada":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_user_without_a_name_is_told_by_number() -> None:
    assert UserNames()(4_000_000_123) == "4000000123"


def test_ten_known_processes_cost_less_than_a_tenth_of_a_percent_of_a_core_at_one_look_a_second() -> None:
    reader = ProcessReader()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()][:10]
    reader.read(pids)
    began = time.process_time()
    for _ in range(50):
        reader.read(pids)
    assert (time.process_time() - began) / 50 < 0.001
