"""The embedded engine: replicas as detached processes, one `shim` each, remembered in files under one folder.

A replica's folder holds `replica.json` (what it is, written before anything runs), `shim.json` (who runs, written by
its shim) and `exit.json` (how it ended). Nothing is signalled unless pid, start time and boot agree.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers import cgroup_folders, logfile
from quarterdeck_agent.drivers.base import Foreign, Found, Inventory, Life, ReplicaSpec, Report, expand
from quarterdeck_agent.errors import EngineError, EngineUnresponsive, InvalidInput, NoSpace, StartRefused
from quarterdeck_agent.failpoints import failpoint

SHIM = Path(__file__).with_name("shim.py")
LOOPBACK = "127.0.0.1"
START_DEADLINE = 20.0
CALL_DEADLINE = 10.0
STOP_MARGIN = 10.0
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "SSL_CERT_FILE", "CUDA_HOME")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Memo:
    """`replica.json`: what a replica is. Holds no environment, which may carry secrets."""

    instance: str
    id: str
    deployment: str
    revision: int
    body: str
    version: str
    port: int
    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    vram: int | None = None
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """`shim.json`: the shim and its child, each by pid and start time, in one boot."""

    pid: int
    start: int
    child: int
    child_start: int
    started: float
    boot_id: str
    held: dict[str, Any]


class ProcessEngine:
    """Runs replicas as processes of this user. `folder` is the engine's own; `instance` names the agent's data folder.

    `environment` is what replicas inherit, by default a few variables of the agent's own and never all of them.
    """

    name = "process"

    def __init__(
        self, folder: Path, instance: str, clock: Clock, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder, self._instance, self._clock = folder, instance, clock
        self._environment = dict(kept_environment(os.environ) if environment is None else environment)
        self._writing = threading.Lock()
        self._memos: dict[str, Memo] = {}
        self._running: dict[str, Running] = {}
        self._ended: dict[str, dict[str, Any]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for unfinished in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    async def version(self) -> str:
        return f"process (Linux {os.uname().release})"

    async def inventory(self) -> Inventory:
        return await self._call("list the replicas", self._inventory, CALL_DEADLINE)

    async def resolve(self, image: str, report: Report) -> str:
        raise EngineError(
            f"The process engine runs no images, and this version asks for {image!r}.",
            field="image",
            hint="Deploy it on a host whose agent uses the docker engine.",
        )

    async def start(self, spec: ReplicaSpec) -> Found:
        return await self._call(f"start {spec.id}", lambda: self._start(spec), START_DEADLINE)

    async def stop(self, found: Found, grace: float) -> None:
        await self._call(f"stop {found.id}", lambda: self._ask_to_end(found, grace), CALL_DEADLINE)
        deadline = time.monotonic() + grace + STOP_MARGIN
        while await self._call(f"look at {found.id}", lambda: self._alive(found), CALL_DEADLINE):
            if time.monotonic() > deadline:
                raise EngineUnresponsive(f"Replica {found.id} did not end {STOP_MARGIN:g} s after it was killed.")
            await asyncio.sleep(0.02)

    async def remove(self, found: Found) -> None:
        await self._call(f"remove {found.id}", lambda: self._remove(found), CALL_DEADLINE)

    async def close(self) -> None:
        """Nothing is held open: shims need no agent."""

    async def _call(self, what: str, work: Callable[[], T], deadline: float) -> T:
        try:
            async with asyncio.timeout(deadline):  # wait_for loses a cancellation that comes with the answer
                return await asyncio.to_thread(work)
        except TimeoutError:
            raise EngineUnresponsive(f"Could not {what} within {deadline:g} s: the disk may hang.") from None
        except OSError as error:
            kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else EngineError
            raise kind(f"Could not {what}: {error}", hint=f"Look at the folder {self._folder}.") from error

    # --- what is there -----------------------------------------------------------------------------------------

    def _inventory(self) -> Inventory:
        replicas, foreign = [], []
        with os.scandir(self._folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        for name in names:
            memo = self._memo(name)
            if memo is None:
                foreign.append(Foreign(str(self._folder / name), "a folder without a replica.json of this agent"))
            else:
                replicas.append(self._found(memo))
        for gone in self._memos.keys() - set(names):
            self._forget(gone)
        return Inventory(tuple(replicas), tuple(foreign))

    def _memo(self, name: str) -> Memo | None:
        if name in self._memos:
            return self._memos[name]
        value = read_json(self._folder / name / "replica.json")
        try:
            memo = Memo(**{**value, "gpus": tuple(value["gpus"]), "cores": tuple(value["cores"])}) if value else None
        except (TypeError, KeyError):
            memo = None
        if memo is None or memo.instance != self._instance or memo.id != name:
            return None
        self._memos[name] = memo
        return memo

    def _found(self, memo: Memo) -> Found:
        running = self._shim(memo.id)
        if running is None:
            ended = self._end(memo.id)
            return self._describe(memo, None, Life.EXITED if ended else Life.CREATED, ended)
        if memo.id not in self._ended and self._serves(running):
            return self._describe(memo, running, Life.RUNNING, None)
        # Only now: an end written after the look above is not missed.
        ended = self._end(memo.id) or {"reason": "it ended together with its supervisor, which left no word"}
        return self._describe(memo, running, Life.EXITED, ended)

    def _describe(self, memo: Memo, running: Running | None, life: Life, end: dict[str, Any] | None) -> Found:
        end = end or {}
        known = running is not None and running.boot_id == self._clock.boot_id
        return Found(
            id=memo.id,
            deployment=memo.deployment,
            revision=memo.revision,
            body=memo.body,
            version=memo.version,
            handle=f"{running.child}:{running.child_start}" if running else "",
            life=life,
            address=(LOOPBACK, memo.port),
            started=running.started if running and known else None,
            ended=end.get("ended") if known or running is None else None,
            exit_code=end.get("exit_code"),
            signal=end.get("signal"),
            out_of_memory=bool(end.get("out_of_memory")),
            reason=end.get("reason", ""),
            gpus=memo.gpus,
            cgroups={key: Path(path) for key, path in running.held["cgroups"].items()} if running else {},
            pids=(running.child,) if running and life is Life.RUNNING else (),
            vram=None if memo.exclusive else memo.vram,
            exclusive=memo.exclusive,
        )

    def _shim(self, name: str) -> Running | None:
        if name not in self._running:
            value = read_json(self._folder / name / "shim.json")
            if value is None:
                return None
            self._running[name] = Running(**value)
        return self._running[name]

    def _end(self, name: str) -> dict[str, Any] | None:
        if name not in self._ended:
            value = read_json(self._folder / name / "exit.json")
            if value is None:
                return None
            self._ended[name] = value
        return self._ended[name]

    def _serves(self, running: Running) -> bool:
        """Whether the shim lives, or a child that it failed to take along."""
        if running.boot_id != self._clock.boot_id:
            return False
        return is_alive(running.pid, running.start) or is_alive(running.child, running.child_start)

    def _forget(self, name: str) -> None:
        self._memos.pop(name, None)
        self._running.pop(name, None)
        self._ended.pop(name, None)

    # --- start -------------------------------------------------------------------------------------------------

    def _start(self, spec: ReplicaSpec) -> Found:
        check_id(spec.id)
        folder = self._folder / spec.id
        with self._writing:
            memo = self._memo(spec.id) or self._write_memo(spec, folder)
        found = self._found(memo)
        if found.life is not Life.CREATED:
            return found
        failpoint("engine.remembered")
        self._launch(spec, memo, folder)
        failpoint("engine.launched")
        found = self._wait_for_shim(memo)
        refused = self._ended.get(spec.id, {}).get("refused")
        if refused:
            reason = found.reason
            self._delete(spec.id)
            raise StartRefused(f"Replica {spec.id} could not be started: {reason}.", field=str(refused))
        return found

    def _write_memo(self, spec: ReplicaSpec, folder: Path) -> Memo:
        if folder.exists():
            raise StartRefused(
                f"{folder} exists and is not this agent's.", field="id", hint="Move that folder away by hand."
            )
        memo = Memo(
            self._instance,
            spec.id,
            spec.deployment,
            spec.revision,
            spec.body,
            spec.version,
            self._free_port(),
            spec.gpus,
            self._cores(spec.resources.cpus),
            spec.resources.vram if spec.gpus else None,
            spec.resources.whole_gpus and bool(spec.gpus),
        )
        # Filled under a name that no inventory lists, then named: a folder without its memo is never ours.
        partial = self._folder.parent / f".{self._folder.name}-{spec.id}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        (partial / "tmp").mkdir()
        (partial / "replica.json").write_text(json.dumps(remembered(memo)))
        partial.rename(folder)
        self._memos[spec.id] = memo
        return memo

    def _launch(self, spec: ReplicaSpec, memo: Memo, folder: Path) -> None:
        launch = json.dumps(self._launch_order(spec, memo, folder)).encode()
        with (folder / "shim.err").open("ab") as errors:
            shim = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SHIM), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd="/",
                env={},
                start_new_session=True,
            )
        try:
            # The environment travels through the pipe: neither argv nor the disk sees a secret.
            shim.communicate(launch, timeout=START_DEADLINE - 2)
        except subprocess.TimeoutExpired:
            shim.kill()
            shim.communicate()
            raise EngineUnresponsive(f"The supervisor of replica {spec.id} did not get ready in time.") from None

    def _launch_order(self, spec: ReplicaSpec, memo: Memo, folder: Path) -> dict[str, Any]:
        def fill(text: str) -> str:
            return expand(
                text, port=memo.port, bundle=str(spec.bundle), name=spec.model or spec.deployment, python=sys.executable
            )

        environment = {
            **self._environment,
            "HOME": str(folder / "tmp"),
            "TMPDIR": str(folder / "tmp"),
            **{key: fill(value) for key, value in spec.env.items()},
            "PORT": str(memo.port),
            "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
        }
        return {
            "argv": [fill(word) for word in spec.command],
            "env": environment,
            "cwd": str(spec.bundle),
            "bundle": str(spec.bundle),
            "log_folder": str(spec.log_folder),
            "log_size": logfile.FILE_SIZE,
            "log_count": logfile.FILE_COUNT,
            "memory": spec.resources.memory,
            "cores": list(memo.cores),
            "cgroups": cgroup_folders.own_children(f"quarterdeck-{spec.id}"),
        }

    def _wait_for_shim(self, memo: Memo) -> Found:
        deadline = time.monotonic() + 5
        while (found := self._found(memo)).life is Life.CREATED:
            if time.monotonic() > deadline:
                raise EngineError(f"The supervisor of replica {memo.id} failed: {self._complaint(memo.id)}")
            time.sleep(0.005)
        return found

    def _complaint(self, name: str) -> str:
        text = (self._folder / name / "shim.err").read_text(errors="backslashreplace").strip()
        return text.splitlines()[-1] if text else "it said nothing."

    def _free_port(self) -> int:
        taken = {memo.port for memo in self._memos.values()}
        while True:
            with socket.socket() as probe:
                probe.bind((LOOPBACK, 0))
                port = int(probe.getsockname()[1])
            if port not in taken:
                return port

    def _cores(self, cpus: float | None) -> tuple[int, ...]:
        """The least used cores of this host, as many as asked; none means no affinity."""
        allowed = sorted(os.sched_getaffinity(0))
        if cpus is None or math.ceil(cpus) >= len(allowed):
            return ()
        used = Counter(core for name, memo in self._memos.items() if name not in self._ended for core in memo.cores)
        return tuple(sorted(sorted(allowed, key=lambda core: (used[core], core))[: max(math.ceil(cpus), 1)]))

    # --- end ---------------------------------------------------------------------------------------------------

    def _ask_to_end(self, found: Found, grace: float) -> None:
        running = self._shim(found.id) if self._memo(found.id) else None
        if running is None or running.boot_id != self._clock.boot_id:
            return
        folder = self._folder / found.id
        (folder / ".grace").write_text(str(max(grace, 0.0)))
        (folder / ".grace").rename(folder / "grace")
        if not send(running.pid, running.start, signal.SIGTERM):
            # A child whose shim is gone has nobody left to end it.
            send(running.child, running.child_start, signal.SIGKILL)

    def _alive(self, found: Found) -> bool:
        running = self._shim(found.id) if self._memo(found.id) else None
        return running is not None and self._serves(running)

    def _remove(self, found: Found) -> None:
        if self._memo(found.id) is None:
            return
        if self._alive(found):
            raise EngineError(f"Replica {found.id} runs and cannot be removed.", hint="Stop it first.")
        self._delete(found.id)

    def _delete(self, name: str) -> None:
        running = self._running.get(name)
        for path in (running.held["cgroups"] if running else {}).values():
            cgroup_folders.remove(Path(path))
        # Renamed first: what a crash leaves half deleted is no replica any more.
        trash = self._folder.parent / f".{self._folder.name}-{name}-removed"
        shutil.rmtree(trash, ignore_errors=True)
        (self._folder / name).rename(trash)
        failpoint("engine.removed")
        shutil.rmtree(trash, ignore_errors=True)
        self._forget(name)


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The few variables a replica needs of the agent's; relative import paths are made absolute."""
    kept = {key: environment[key] for key in KEPT_VARIABLES if key in environment}
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = os.pathsep.join(
            str(Path(part).absolute()) for part in kept["PYTHONPATH"].split(os.pathsep)
        )
    return kept


def check_id(name: str) -> None:
    """Refuse a replica id that is no plain folder name."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise InvalidInput(f"{name!r} cannot name a replica.", field="id")


def remembered(memo: Memo) -> dict[str, Any]:
    """What is written of a memo: no claim where there are no GPUs, so that an older agent reads it too."""
    values = asdict(memo)
    return values if memo.gpus else {key: value for key, value in values.items() if key not in ("vram", "exclusive")}


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; `None` when there is none or it is no object."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_alive(pid: int, start: int) -> bool:
    """Whether the process that began at `start` (clock ticks after boot, proc(5) field 22) still runs."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return False
    try:
        fields = os.read(descriptor, 1024).rpartition(b")")[2].split()
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == start


def send(pid: int, start: int, number: int) -> bool:
    """Signal exactly that process; False when it is gone, also when its pid belongs to another one now."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor pins the process, so what is checked is what is signalled.
        if not is_alive(pid, start):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
