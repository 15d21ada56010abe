"""A host whose GPUs are a fake library's and whose models take memory on them, as far as NVML can tell.

The models are the trivial ones: real processes, which compute nothing. `Programs` looks which of them run and on which
device they were put, and writes into the fake machine what NVML would then show of a model with that `GPU_MEMORY`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.end_to_end.bundles import push
from tests.end_to_end.faults import servers
from tests.end_to_end.rig import Agent, until
from tests.nvml.fake import GIB, FakeGpu, FakeMig, FakeNvml, FakeProcess, Machine, completed

EVERY = 0.05


@dataclass(frozen=True, slots=True)
class Program:
    """A running model with memory on one device or several."""

    pid: int
    version: str
    devices: tuple[str, ...]
    memory: int


@dataclass
class Programs:
    """Keeps the fake machine in step with the models that run. `change` what it is like underneath."""

    host: Agent
    fake: FakeNvml
    _machine: Machine = field(default_factory=Machine)
    _lingering: dict[str, FakeProcess] = field(default_factory=dict)
    _left: dict[str, tuple[FakeProcess, ...]] = field(default_factory=dict)
    _known: dict[int, Program] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ending: threading.Event = field(default_factory=threading.Event)

    def change(self, machine: Machine) -> None:
        """Make the machine below the models this one."""
        with self._lock:
            self._machine = machine
            self._write()

    def linger(self, version: str, pid: int, memory: int) -> None:
        """When a model of this version ends, this process holds so much memory on its devices from then on."""
        with self._lock:
            self._lingering[version] = FakeProcess(pid, memory)

    def release(self) -> None:
        """Whatever lingers is gone."""
        with self._lock:
            self._lingering.clear()
            self._left.clear()
            self._write()

    def running(self) -> tuple[Program, ...]:
        with self._lock:
            return tuple(self._known.values())

    def __enter__(self) -> Programs:
        self.change(self.fake.machine)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ending.wait(EVERY):
            with self._lock:
                self._look()

    def _look(self) -> None:
        now = {pid: self._known.get(pid) or _program(pid) for pid in servers(self.host)}
        known = {pid: program for pid, program in now.items() if program is not None}
        if known.keys() == self._known.keys():
            return
        for program in (self._known[pid] for pid in self._known.keys() - known.keys()):
            if (left := self._lingering.get(program.version)) is not None:
                for device in program.devices:
                    self._left[device] = (*self._left.get(device, ()), left)
        self._known = known
        self._write()

    def _write(self) -> None:
        held: dict[str, tuple[FakeProcess, ...]] = dict(self._left)
        for program in self._known.values():
            for device in program.devices:
                held[device] = (*held.get(device, ()), FakeProcess(program.pid, program.memory, sm=30))
        gpus = tuple(_holding(gpu, held) for gpu in completed(self._machine))
        self.fake.write(replace(self._machine, gpus=gpus))


def _program(pid: int) -> Program | None:
    """A model's process as far as it is one that asked for GPUs."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        variables = dict(word.partition("=")[::2] for word in words)
        devices = tuple(name for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name)
        memory = int(variables.get("GPU_MEMORY", 0))
        return Program(pid, variables.get("MODEL_VERSION", ""), devices, memory)
    return None


def _holding(gpu: FakeGpu, held: Mapping[str, tuple[FakeProcess, ...]]) -> FakeGpu:
    own = held.get(gpu.uuid, ())
    migs = tuple(_instance_holding(mig, held.get(mig.uuid, ())) for mig in gpu.migs)
    of_instances = sum((mig.memory_used or 0) for mig in migs)
    used = (gpu.memory_used or 0) + _sum(own) + of_instances
    return replace(gpu, processes=(*gpu.processes, *own), memory_used=used, migs=migs)


def _instance_holding(mig: FakeMig, own: tuple[FakeProcess, ...]) -> FakeMig:
    return replace(mig, processes=(*mig.processes, *own), memory_used=(mig.memory_used or 0) + _sum(own))


def _sum(processes: tuple[FakeProcess, ...]) -> int:
    return sum(process.memory or 0 for process in processes)


# --- a host --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuHost:
    """An agent, its machine's driver, and the models' memory on it."""

    agent: Agent
    fake: FakeNvml
    programs: Programs

    def status(self) -> dict[str, Any]:
        code, answer = self.agent.api("GET", "/v1/status")
        assert code == 200, answer
        assert isinstance(answer, dict)
        return answer

    def nvml(self) -> str:
        """How the agent says that NVML is."""
        return str(next(part["state"] for part in self.status()["parts"] if part["name"] == "nvml"))

    def gpu(self, uuid: str) -> dict[str, Any]:
        found = next(gpu for gpu in self.status()["gpus"] if gpu["uuid"] == uuid)
        assert isinstance(found, dict)
        return found

    def revisions(self, name: str = "toy") -> list[dict[str, Any]]:
        """Newest first."""
        return self.agent.revisions(name)

    def until_nvml(self, state: str, deadline: float = 15.0) -> None:
        until(lambda: self.nvml() == state, f"NVML is said to be {state}", deadline)

    def push(self, folder: Path, version: str, resources: Mapping[str, Any], memory: int, **options: Any) -> str:
        """Push a model that takes `memory` bytes on each of its devices."""
        variables = {"GPU_MEMORY": str(memory), **options.pop("env", {})}
        return push(self.agent, folder, version, resources=resources, env=variables, **options)


@contextlib.contextmanager
def gpu_host(folder: Path, machine: Machine, **settings: str) -> Iterator[GpuHost]:
    """A running agent on this machine, which knows its GPUs already."""
    fake = FakeNvml(folder / "nvml", machine)
    agent = Agent(folder / "host", settings=settings, variables=fake.env)
    try:
        with Programs(agent, fake) as programs:
            host = GpuHost(agent.start() and agent, fake, programs)
            if machine.loaded == "yes":
                until(lambda: len(host.status()["gpus"]) >= len(machine.gpus), "the GPUs are seen")
            yield host
    finally:
        agent.clear()


@contextlib.contextmanager
def somebody() -> Iterator[int]:
    """The pid of a process that is nobody's here."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        yield process.pid
    finally:
        process.communicate()


def whole(*used: int) -> Machine:
    """GPUs of 80 GiB, with so many GiB in use of each by nobody that is known."""
    gpu = FakeGpu(memory_total=80 * GIB, memory_reserved=GIB // 2, memory_used=0)
    return Machine(gpus=tuple(replace(gpu, memory_used=gib * GIB) for gib in used))
