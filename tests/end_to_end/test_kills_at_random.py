"""The agent is killed at random moments under load, and everything at once as in a reboot; leaks are looked for."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.end_to_end.bundles import deployed
from tests.end_to_end.faults import ask, pids_by_version, servers
from tests.end_to_end.rig import Agent, Load, until

pytestmark = pytest.mark.envoy
KILLS = 30


def settled(host: Agent) -> bool:
    newest = max(revision["number"] for revision in host.revisions("toy"))
    status = host.deployment("toy")
    return bool(status["state"] == "serving" and status["live_revision"] == newest)


def test_thirty_kills_under_load_fail_no_request_and_end_no_process(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1", "--warm", "3600")
    deployed(host, tmp_path, "2", "--warm", "3600")
    seed = time.time_ns()
    dice, gateway, ending = random.Random(seed), host.gateway_pid(), threading.Event()

    def change() -> None:
        while not ending.is_set():
            # To and fro between two forms: each stays warm, so neither may ever be started anew.
            ask(host, "POST", "/v1/deployments/toy/rollback", {})
            ending.wait(dice.uniform(0.05, 0.6))

    changer = threading.Thread(target=change)
    with Load(host, "toy", threads=2, pause=0.02) as load:
        changer.start()
        try:
            for _ in range(KILLS):
                ending.wait(dice.uniform(0.0, 0.5))
                host.kill()
                host.start()
        finally:
            ending.set()
            changer.join()
        until(lambda: settled(host), "the host comes to rest")
    assert load.failures == [], seed
    assert host.gateway_pid() == gateway, seed
    pids = pids_by_version(load)
    assert {version: len(found) for version, found in pids.items()} == {"1": 1, "2": 1}, seed
    assert set(servers(host)) == pids["1"] | pids["2"], seed


def held(pid: int) -> tuple[int, int]:
    """Open files and threads of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_deploys_leave_neither_files_nor_threads_open(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    deployed(host, tmp_path, "2")

    def again(times: int) -> tuple[int, int]:
        for _ in range(times):
            assert host.api("POST", "/v1/deployments/toy/restart", {})[0] == 202
            until(lambda: settled(host), "the restart is through")
        return held(host.pid)

    files, threads = again(3)
    after_files, after_threads = again(10)
    assert after_files <= files + 6
    assert after_threads <= max(threads, 40)


@pytest.fixture
def other_boot(tmp_path: Path) -> Path:
    """A boot id that an agent may be shown instead of the machine's own."""
    if os.geteuid() != 0:
        pytest.skip("only root can show a process another boot id")
    path = tmp_path / "boot_id"
    path.write_text("00000000-1111-2222-3333-444444444444\n")
    return path


def shown(boot: Path) -> tuple[str, ...]:
    """The command that shows what is executed behind it another boot id."""
    script = f'mount --bind {boot} /proc/sys/kernel/random/boot_id && exec "$@"'
    return "unshare", "--mount", "sh", "-c", script, "sh"


def test_after_a_reboot_everything_wanted_is_back(host: Agent, tmp_path: Path, other_boot: Path) -> None:
    deployed(host, tmp_path, "1")
    deployed(host, tmp_path, "2")
    deployed(host, tmp_path, "1", "--replicas", "2", name="other")
    host.must("deploy", "toy:1", "--as", "idle")
    host.must("stop", "idle", "--yes")
    gateway = host.gateway_pid()
    assert gateway is not None
    host.kill()
    os.kill(gateway, signal.SIGKILL)
    end_replicas(host)
    host.wrapper = shown(other_boot)
    try:
        comes_back(host)
    finally:
        host.stop()
        end_replicas(host)  # the rig, which is of this boot, would not take them for its own


def end_replicas(host: Agent) -> None:
    """End all replicas and their supervisors at once, as a power cut would."""
    for pid in [*(parent(server) for server in servers(host)), *servers(host)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not servers(host), "all replicas are gone")


def comes_back(host: Agent) -> None:
    began = time.monotonic()
    host.start()
    until(lambda: host.call("toy")[0] == 200 and host.call("other")[0] == 200, "both answer", 30)
    until(lambda: host.deployment("other")["replicas_ready"] == 2, "all replicas are back", 30)
    assert time.monotonic() - began < 30
    assert host.call("toy")[1]["version"] == "2"
    assert host.call("idle")[0] == 503
    status = host.deployment("toy")
    assert (status["live_revision"], status["state"], status["warm_revision"]) == (2, "serving", None)
    assert len(servers(host)) == 3
    assert host.api("GET", "/v1/hello")[0] == 200


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_is_warm_stays_warm_over_a_restart_of_the_agent(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1", "--warm", "600")
    deployed(host, tmp_path, "2", "--warm", "600")
    before = until(lambda: (s := host.deployment("toy"))["warm_until"] and s, "the old one is warm")
    host.kill()
    host.start()
    after = until(lambda: (s := host.deployment("toy"))["warm_until"] and s, "the old one is warm again")
    assert after["warm_revision"] == before["warm_revision"] == 1
    moments = [seconds(status["warm_until"]) for status in (before, after)]
    assert abs(moments[1] - moments[0]) <= 2
    assert {r["handle"] for r in after["replicas"]} == {r["handle"] for r in before["replicas"]}


def seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
