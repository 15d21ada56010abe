"""The supervisor of one replica in the process engine: it outlives the agent and dies only after its child.

Run as `python -I -S shim.py FOLDER` with the launch as JSON on stdin; imports the standard library and `logfile.py`
beside it, nothing else. It holds a lock on the folder, starts the child in a session of its own, writes its output to
log files, and leaves `shim.json` (who runs) and `exit.json` (how it ended), each whole or not at all.

    start ──▶ shim.json ──▶ child runs ──▶ exit.json
      └── child cannot be executed ──────▶ exit.json with "refused"
"""

# pathlib would double the start of every shim.
# ruff: noqa: PTH100, PTH103, PTH104, PTH106, PTH110, PTH118, PTH120, PTH123

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from logfile import Lines, LogFile  # type: ignore[import-not-found, unused-ignore]

EXIT_ROOM = 2048
REASON_LIMIT = 1024
READ_SIZE = 64 * 1024
DRAIN_SECONDS = 2.0
DEFAULT_GRACE = 10.0

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 32, 4096, 16384, 1 << 19


def now() -> float:
    """Seconds since boot; the same scale as the agent's clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat: together with the pid it names a process for one boot (proc(5))."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def write_whole(folder: str, name: str, value: dict[str, Any]) -> None:
    """Put a JSON file in place so that a reader sees all of it or none."""
    temporary = os.path.join(folder, f".{name}")
    with open(temporary, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, os.path.join(folder, name))


class ExitNote:
    """`exit.json`, whose room on disk is taken at the start so that a full disk cannot keep the end a secret."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._temporary = os.path.join(folder, ".exit.json")
        self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(self._descriptor, b" " * EXIT_ROOM)

    def write(self, value: dict[str, Any]) -> None:
        os.pwrite(self._descriptor, json.dumps(value).encode().ljust(EXIT_ROOM)[:EXIT_ROOM], 0)
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        os.rename(self._temporary, os.path.join(self._folder, "exit.json"))
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


# --- what holds the child --------------------------------------------------------------------------------------


def write_value(path: str, value: object) -> None:
    with open(path, "w") as file:
        file.write(str(value))


def limit_memory(cgroups: dict[str, str], memory: int) -> str:
    """Set the limit in the memory cgroup; what holds is returned, `rlimit` or `none` where there is no such cgroup.

    RLIMIT_AS is never used: torch and CUDA reserve far more address space than they touch.
    """
    try:
        if "unified" in cgroups:
            write_value(cgroups["unified"] + "/memory.max", memory)
            write_value(cgroups["unified"] + "/memory.swap.max", 0)
            return "cgroup"
        if "memory" in cgroups:
            write_value(cgroups["memory"] + "/memory.limit_in_bytes", memory)
            swap = cgroups["memory"] + "/memory.memsw.limit_in_bytes"
            if os.path.exists(swap):
                write_value(swap, memory)
            return "cgroup"
    except OSError:
        pass
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    except (OSError, ValueError):
        return "none"
    return "rlimit"


def make_cgroups(wanted: dict[str, str]) -> dict[str, str]:
    """Make the folders that the host lets us make; the others are left out."""
    made = {}
    for controller, path in wanted.items():
        try:
            os.makedirs(path, exist_ok=True)
            if os.access(path + "/cgroup.procs", os.W_OK):
                made[controller] = path
        except OSError:
            continue
    return made


def enter_cgroups(cgroups: dict[str, str]) -> dict[str, str]:
    """Put this process into each cgroup; those that took it are returned."""
    entered = {}
    for controller, path in cgroups.items():
        try:
            write_value(path + "/cgroup.procs", os.getpid())
            entered[controller] = path
        except OSError:
            continue
    return entered


def out_of_memory(cgroups: dict[str, str]) -> bool:
    """Whether the kernel killed a process of this cgroup for memory."""
    for controller, name in (("unified", "memory.events"), ("memory", "memory.oom_control")):
        if controller not in cgroups:
            continue
        try:
            with open(f"{cgroups[controller]}/{name}") as file:
                counts = dict(line.split() for line in file)
        except (OSError, ValueError):
            continue
        if int(counts.get("oom_kill", 0)) > 0:
            return True
    return False


def drop_cgroups(cgroups: dict[str, str]) -> None:
    for path in cgroups.values():
        try:
            os.rmdir(path)
        except OSError:
            continue


def guard_bundle(libc: ctypes.CDLL, bundle: str) -> bool:
    """Show the bundle read-only to this process and its children; False where the host does not allow it."""
    path = bundle.encode()
    if libc.unshare(CLONE_NEWNS) != 0:
        return False
    if libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None) != 0:
        return False
    if libc.mount(path, path, None, MS_BIND, None) != 0:
        return False
    return bool(libc.mount(path, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, None) == 0)


# --- the child -------------------------------------------------------------------------------------------------


def become(launch: dict[str, Any], cgroups: dict[str, str], out: int, err: int, word: int) -> NoReturn:
    """Turn this forked process into the replica. What goes wrong is written to `word`.

    Every descriptor of this process above 2 is close-on-exec (PEP 446), so the replica inherits none.
    """
    step = "limits"
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        held = confine(libc, launch, enter_cgroups(cgroups))
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        step = "bundle"
        os.chdir(launch["cwd"])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        step = "command"
        os.write(word, json.dumps({"held": held}).encode() + b"\n")
        # The end of `word` without a second line tells that exec worked.
        os.execvpe(launch["argv"][0], launch["argv"], launch["env"])  # noqa: S606
    except BaseException as error:  # noqa: BLE001  the parent must hear whatever went wrong in this process
        os.write(word, json.dumps({"field": step, "detail": str(error)}).encode() + b"\n")
    os._exit(127)


def confine(libc: ctypes.CDLL, launch: dict[str, Any], cgroups: dict[str, str]) -> dict[str, Any]:
    """Put the asked limits on this process; what holds them is returned: the host decides what is possible."""
    held: dict[str, Any] = {"memory": "none", "cpus": "none", "bundle": "permissions", "cgroups": cgroups}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if launch["memory"]:
        held["memory"] = limit_memory(cgroups, launch["memory"])
    if launch["cores"]:
        try:
            os.sched_setaffinity(0, launch["cores"])
            held["cpus"] = "affinity"
        except OSError:
            pass
    if os.geteuid() == 0 and guard_bundle(libc, launch["bundle"]):
        held["bundle"] = "mount"
    return held


class Child:
    """The started replica: its pid, the read ends of its output, and how to end all of it."""

    def __init__(self, launch: dict[str, Any], cgroups: dict[str, str]) -> None:
        out, out_child = os.pipe()
        err, err_child = os.pipe()
        word, word_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            become(launch, cgroups, out_child, err_child, word_child)
        for descriptor in (out_child, err_child, word_child):
            os.close(descriptor)
        with os.fdopen(word, "rb") as answers:
            said: list[dict[str, Any]] = [json.loads(line) for line in answers]
        self.refused: dict[str, str] | None = next((line for line in said if "detail" in line), None)
        self.held: dict[str, Any] = next((line["held"] for line in said if "held" in line), {})
        self.streams = {out: ("o", Lines()), err: ("e", Lines())}
        for descriptor in self.streams:
            os.set_blocking(descriptor, False)
        self.status: int | None = None

    def signal(self, number: int) -> None:
        """To every process of the child's session that kept its group."""
        if self.status is None:
            # Not reaped yet, so the number cannot have gone to somebody else.
            os.killpg(self.pid, number)

    def reap(self) -> None:
        """Collect what has ended: the child itself, and orphans that became ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.status = status

    def sweep(self) -> None:
        """Kill what the child left behind. Orphans come to us (PR_SET_CHILD_SUBREAPER), generation by generation."""
        deadline = now() + DRAIN_SECONDS
        self.signal(signal.SIGKILL)
        while now() < deadline:
            self.reap()
            left = children()
            if not left:
                return
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        # A kernel without CONFIG_PROC_CHILDREN: the child's own group is all that can be ended.
        return []


# --- the watch -------------------------------------------------------------------------------------------------


class Watch:
    """Waits for output, signals and the end. One thread, nothing that blocks but poll."""

    def __init__(self, folder: str, child: Child, log: LogFile) -> None:
        self._folder, self._child, self._log = folder, child, log
        self._poll = select.poll()
        for descriptor in child.streams:
            self._poll.register(descriptor, select.POLLIN)
        self._kill_at: float | None = None

    def run(self, wake: int) -> int:
        """Until the child has ended and its output is read; returns its wait status."""
        self._poll.register(wake, select.POLLIN)
        while self._child.status is None:
            self._turn(wake, self._timeout())
            if self._kill_at is not None and now() >= self._kill_at:
                self._child.sweep()
            self._child.reap()
        self._child.sweep()
        deadline = now() + DRAIN_SECONDS
        while self._child.streams and now() < deadline:
            self._turn(wake, 0.05)
        for stream, lines in self._child.streams.values():
            self._log.write(stream, lines.rest())
        return self._child.status

    def _timeout(self) -> float | None:
        return None if self._kill_at is None else max(self._kill_at - now(), 0.0)

    def _turn(self, wake: int, timeout: float | None) -> None:
        for descriptor, _ in self._poll.poll(None if timeout is None else timeout * 1000 + 1):
            if descriptor == wake:
                if signal.SIGTERM in os.read(wake, 512):
                    self._ask_to_end()
            else:
                self._copy(descriptor)

    def _ask_to_end(self) -> None:
        kill_at = now() + self._grace()
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        self._child.signal(signal.SIGTERM)

    def _grace(self) -> float:
        try:
            with open(os.path.join(self._folder, "grace")) as file:
                return float(file.read())
        except (OSError, ValueError):
            return DEFAULT_GRACE

    def _copy(self, descriptor: int) -> None:
        stream, lines = self._child.streams[descriptor]
        try:
            chunk = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if chunk:
            self._log.write(stream, lines.feed(chunk))
            return
        self._log.write(stream, lines.rest())
        self._poll.unregister(descriptor)
        os.close(descriptor)
        del self._child.streams[descriptor]


# --- the whole -------------------------------------------------------------------------------------------------


def detach() -> None:
    """Leave the agent's process tree: its parent is init (or the nearest subreaper) from here on."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hold(folder: str) -> bool:
    """Lock the folder for this process' whole life; False when another shim has it."""
    descriptor = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def watch_signals() -> int:
    """A descriptor that becomes readable with the number of each signal."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    return read


def ending(status: int, memory: bool, dropped: int) -> dict[str, Any]:
    """How the child ended, as `exit.json` has it."""
    code = os.waitstatus_to_exitcode(status)
    killed = code < 0
    return {
        "exit_code": None if killed else code,
        "signal": -code if killed else None,
        "out_of_memory": memory and code in (-signal.SIGKILL, 137),
        "ended": now(),
        "dropped": dropped,
    }


def supervise(folder: str, launch: dict[str, Any]) -> None:
    note = ExitNote(folder)
    wake = watch_signals()
    cgroups = make_cgroups(launch["cgroups"])
    log = LogFile(launch["log_folder"], size=launch["log_size"], count=launch["log_count"])
    child = Child(launch, cgroups)
    if child.refused:
        child.reap()
        drop_cgroups(cgroups)
        refused = {"exit_code": 127, "signal": None, "out_of_memory": False, "ended": now(), "dropped": 0}
        note.write({**refused, "refused": child.refused["field"], "reason": child.refused["detail"][:REASON_LIMIT]})
        return
    state: dict[str, Any] = {"pid": os.getpid(), "start": start_time(os.getpid()), "child": child.pid, "started": now()}
    with open("/proc/sys/kernel/random/boot_id") as file:
        state["boot_id"] = file.read().strip()
    write_whole(folder, "shim.json", {**state, "child_start": start_time(child.pid), "held": child.held})
    # The engine waits for the end of our stdout: it has the state now.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    status = Watch(folder, child, log).run(wake)
    memory = out_of_memory(cgroups)
    drop_cgroups(cgroups)
    note.write(ending(status, memory, log.dropped))
    log.close()


def main() -> None:
    folder = sys.argv[1]
    launch = json.loads(sys.stdin.buffer.read())
    detach()
    os.umask(0o027)
    os.chdir("/")
    if hold(folder):
        supervise(folder, launch)


if __name__ == "__main__":
    main()
