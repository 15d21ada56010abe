"""Whose memory it is: every case of a process on a GPU, as values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.nvml_seen import NvmlProcess
from quarterdeck_agent.drivers.processes import HostProcess
from quarterdeck_agent.gpus.attribution import UNEXPLAINED_FROM, attribute, held
from quarterdeck_agent.protocol import Gpu, GpuProcess, GpuUse

GIB = 1 << 30
CONTAINER = "c" * 64


def gpu(uuid: str = "GPU-0", **changes: Any) -> Gpu:
    whole = Gpu(0, uuid, "H100", memory_total=80 * GIB, memory_free=79 * GIB, memory_reserved=GIB)
    return replace(whole, **changes)


def process_replica(name: str = "toy-1", pid: int = 100, start: int = 7, **changes: Any) -> Found:
    made = Found(name, "toy", 3, "body", "v", f"{pid}:{start}", Life.RUNNING, pids=(pid,))
    return replace(made, **changes)


def container_replica(name: str = "toy-2", handle: str = CONTAINER) -> Found:
    cgroups = {"memory": Path("/sys/fs/cgroup/memory/docker") / handle}
    return Found(name, "toy", 4, "body", "v", handle, Life.RUNNING, cgroups=cgroups, pids=(200,))


def person(pid: int, *kin: tuple[int, int], groups: tuple[str, ...] = (), start: int = 50) -> HostProcess:
    return HostProcess(pid, start, "ada", "python", frozenset({(pid, start), *kin}), frozenset(groups))


def owner(one: HostProcess, *replicas: Found) -> tuple[str | None, str | None, int | None]:
    listed = {"GPU-0": (NvmlProcess(one.pid, GIB),)}
    (use,) = attribute(listed, {one.pid: one}, replicas, [gpu()])
    (told,) = use.processes
    assert (told.user, told.command) == ("ada", "python")
    return told.replica, told.deployment, told.revision


@pytest.mark.parametrize(
    "one",
    [
        person(100, start=7),
        person(101, (100, 7)),
        person(102, (101, 60), (100, 7)),
        person(103, groups=("user.slice", "quarterdeck-toy-1")),
    ],
    ids=["itself", "its child", "a grandchild or one of its session", "an orphan in its control group"],
)
def test_a_process_of_a_replica_that_is_a_process_is_the_replicas(one: HostProcess) -> None:
    replica = process_replica(cgroups={"unified": Path("/sys/fs/cgroup/agent/quarterdeck-toy-1")})
    assert owner(one, replica, container_replica()) == ("toy-1", "toy", 3)


@pytest.mark.parametrize(
    "groups",
    [
        ("docker", CONTAINER),
        ("system.slice", f"docker-{CONTAINER}.scope"),
        ("..", CONTAINER, "init.scope"),
    ],
    ids=["cgroupfs", "systemd", "in a namespace, with groups of its own below"],
)
def test_a_process_in_a_container_is_that_replicas(groups: tuple[str, ...]) -> None:
    assert owner(person(300, groups=groups), process_replica(), container_replica()) == ("toy-2", "toy", 4)
    unseen = replace(container_replica(), cgroups={}, pids=())
    assert owner(person(300, groups=groups), unseen) == ("toy-2", "toy", 4)


@pytest.mark.parametrize(
    "one",
    [
        person(400),
        person(401, (100, 8)),
        person(100, start=9),
        person(402, groups=("docker", "d" * 64)),
        person(403, groups=("quarterdeck-toy-11",)),
        person(404, (200, 1), groups=("docker",)),
    ],
    ids=["a stranger", "a child of another with its number", "its number, later", "a container", "a name", "a pid"],
)
def test_everything_else_is_unmanaged(one: HostProcess) -> None:
    replica = process_replica(cgroups={"memory": Path("/sys/fs/cgroup/memory/quarterdeck-toy-1")})
    assert owner(one, replica, container_replica()) == (None, None, None)


def test_a_replica_whose_group_is_everybodys_owns_only_its_kin() -> None:
    shared = process_replica(cgroups={"memory": Path("/sys/fs/cgroup/memory/user.slice")})
    assert owner(person(300, groups=("user.slice",)), shared) == (None, None, None)


def test_a_process_that_the_host_does_not_know_is_told_by_its_pid_alone() -> None:
    (use,) = attribute({"GPU-0": (NvmlProcess(9, GIB, 0.5),)}, {}, [process_replica(pid=9)], [gpu()])
    assert use.processes == (GpuProcess(9, GIB, 0.5),)


def test_one_pid_that_computes_and_draws_is_one_process_and_the_largest_comes_first() -> None:
    listed = (
        NvmlProcess(5, None),
        NvmlProcess(7, GIB, 0.25, "graphics"),
        NvmlProcess(6, 2 * GIB),
        NvmlProcess(7, GIB, None, "compute"),
    )
    (use,) = attribute({"GPU-0": listed}, {}, [], [gpu()])
    assert [(one.pid, one.memory, one.utilisation, one.kind) for one in use.processes] == [
        (6, 2 * GIB, None, "compute"),
        (7, GIB, 0.25, "compute"),
        (5, None, None, "compute"),
    ]


def test_a_gpu_that_could_not_be_asked_has_no_use_and_an_idle_one_an_empty_one() -> None:
    found = attribute({"GPU-1": ()}, {}, [], [gpu(), gpu("GPU-1")])
    assert found == (GpuUse("GPU-1", (), 0),)


def test_processes_in_instances_are_not_told_again_with_the_gpu_they_are_cut_from() -> None:
    whole = gpu(mig=True, memory_free=20 * GIB)
    parts = [gpu(f"MIG-{n}", parent="GPU-0", memory_total=10 * GIB, memory_free=6 * GIB) for n in range(2)]
    listed = {
        "GPU-0": (NvmlProcess(1, 3 * GIB), NvmlProcess(2, 3 * GIB), NvmlProcess(3, GIB)),
        "MIG-0": (NvmlProcess(1, 3 * GIB),),
        "MIG-1": (NvmlProcess(2, 3 * GIB),),
    }
    uses = attribute(listed, {}, [], [whole, *parts])
    assert [(use.uuid, [one.pid for one in use.processes], use.unexplained) for use in uses] == [
        ("GPU-0", [3], None),
        ("MIG-0", [1], 0),
        ("MIG-1", [2], 0),
    ]


@pytest.mark.parametrize(
    ("changes", "processes", "told"),
    [
        ({"memory_free": 75 * GIB}, (NvmlProcess(1, GIB),), 3 * GIB),
        ({"memory_free": 75 * GIB}, (NvmlProcess(1, 4 * GIB),), 0),
        ({"memory_free": 79 * GIB - UNEXPLAINED_FROM}, (), UNEXPLAINED_FROM),
        ({"memory_free": 79 * GIB - UNEXPLAINED_FROM + 1}, (), 0),
        ({"memory_free": 79 * GIB}, (NvmlProcess(1, GIB),), 0),
        ({"memory_free": 75 * GIB}, (NvmlProcess(1, None),), None),
        ({"memory_free": None}, (), None),
        ({"memory_reserved": None}, (), None),
        ({"memory_total": None}, (), None),
    ],
    ids=["left over", "held", "noticeable", "not quite", "not in step", "untold", "no free", "no reserved", "no total"],
)
def test_memory_without_an_owner_is_told_where_it_is_worth_it(
    changes: dict[str, Any], processes: tuple[NvmlProcess, ...], told: int | None
) -> None:
    (use,) = attribute({"GPU-0": processes}, {}, [], [gpu(**changes)])
    assert use.unexplained == told


def test_what_a_replica_holds_is_the_sum_of_its_processes_on_each_gpu() -> None:
    uses = [
        GpuUse("GPU-0", (GpuProcess(1, 3, replica="a"), GpuProcess(2, 4, replica="a"), GpuProcess(3, 5))),
        GpuUse(
            "GPU-1", (GpuProcess(1, 1, replica="a"), GpuProcess(4, None, replica="b"), GpuProcess(5, 2, replica="b"))
        ),
    ]
    assert held(uses) == {"a": {"GPU-0": 7, "GPU-1": 1}, "b": {"GPU-1": None}}


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 6), st.none() | st.integers(0, 40 * GIB)),
        max_size=20,
    )
)
def test_no_byte_is_told_twice_and_none_is_left_out(listed: list[tuple[int, int, int | None]]) -> None:
    processes = {
        f"GPU-{n}": tuple({pid: NvmlProcess(pid, memory) for where, pid, memory in listed if where == n}.values())
        for n in range(3)
    }
    people = {pid: person(pid, (100, 7)) if pid % 2 else person(pid) for pid in range(1, 5)}
    uses = attribute(processes, people, [process_replica()], [gpu(f"GPU-{n}") for n in range(3)])
    for use in uses:
        given_there = {one.pid: one.memory for one in processes[use.uuid]}
        assert {one.pid: one.memory for one in use.processes} == given_there
        assert {one.pid for one in use.processes if one.replica} == {pid for pid in given_there if pid in (1, 3)}
