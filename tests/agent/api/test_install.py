"""The systemd units, and what the agent tells systemd."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from quarterdeck_agent import settings
from quarterdeck_agent.__main__ import main
from quarterdeck_agent.drivers.cgroup_folders import LEAF
from quarterdeck_agent.errors import SettingsError
from quarterdeck_agent.install import AGENT_UNIT, GATEWAY_UNIT, Unit, install, units
from quarterdeck_agent.notify import Notifier


def made(**overrides: object) -> tuple[Unit, Unit]:
    found = settings.load({}, root=True, overrides=overrides)
    envoy: tuple[str, ...] = ("/opt/envoy", "--config-path", str(found.data_folder / "gateway" / "bootstrap.json"))
    envoy += ("--concurrency", str(found.gateway_concurrency))
    return units(found, agent=("/opt/qd/bin/qd-agent", "run"), gateway=envoy)


def test_the_agents_unit_notifies_is_watched_and_spares_its_replicas() -> None:
    agent, gateway = made()
    for line in ("Type=notify", "WatchdogSec=30", "KillMode=process", "NoNewPrivileges=yes", "Restart=always"):
        assert line in agent.text.splitlines()
    assert "ExecStart=/opt/qd/bin/qd-agent run" in agent.text
    assert "StateDirectory=quarterdeck" in agent.text
    assert "/var/lib/quarterdeck/gateway/bootstrap.json" in gateway.text
    assert "PartOf" not in gateway.text
    assert "QUARTERDECK_GATEWAY_SUPERVISED=true" in agent.text
    assert "}" not in agent.text + gateway.text


def test_other_folders_and_odd_characters_are_quoted() -> None:
    agent, gateway = made(data_folder=Path("/srv/my models/50%"))
    assert 'Environment="QUARTERDECK_DATA_FOLDER=/srv/my models/50%%"' in agent.text
    assert "StateDirectory" not in agent.text
    assert '"/srv/my models/50%%/gateway/bootstrap.json"' in gateway.text


def test_replicas_get_groups_of_their_own_and_one_out_of_memory_does_not_end_the_agent() -> None:
    lines = made()[0].text.splitlines()
    assert {"Delegate=yes", f"DelegateSubgroup={LEAF}", "OOMPolicy=continue", "TasksMax=infinity"} <= set(lines)


@pytest.mark.parametrize(
    ("data_folder", "envoy", "expected"),
    [
        ("/srv/qd", "/opt/envoy", {"ProtectHome=yes", "PrivateTmp=yes"}),
        ("/srv/qd", "/home/ada/venv/bin/envoy", {"ProtectHome=no", "PrivateTmp=yes"}),
        ("/root/qd", "/opt/envoy", {"ProtectHome=no", "PrivateTmp=yes"}),
        ("/tmp/qd", "/opt/envoy", {"ProtectHome=yes", "PrivateTmp=no"}),
    ],
)
def test_the_gateway_can_see_its_own_program_and_folder(data_folder: str, envoy: str, expected: set[str]) -> None:
    found = settings.load({}, root=True, overrides={"data_folder": Path(data_folder)})
    gateway = units(found, agent=("/opt/qd/bin/qd-agent", "run"), gateway=(envoy,))[1]
    assert expected <= set(gateway.text.splitlines())


def test_units_are_well_formed() -> None:
    for unit in made():
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(unit.text)
        assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in made():
        (tmp_path / unit.name).write_text(unit.text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / AGENT_UNIT)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    # DelegateSubgroup came with systemd 254; an older one says that it passes over it.
    told = [line for line in checked.stderr.splitlines() if "'DelegateSubgroup'" not in line]
    assert not any("Unknown" in line for line in told), told


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    first = install(made(), tmp_path)
    again = install(made(), tmp_path)
    updated = install(made(gateway_concurrency=7), tmp_path)
    assert [line.split()[0] for line in first] == ["written", "written", "next:", "next:"]
    assert [line.split()[0] for line in again] == ["unchanged", "unchanged", "next:", "next:"]
    assert [line.split()[0] for line in updated] == ["unchanged", "updated", "next:", "next:"]
    written = {path.name for path in (tmp_path / "etc/systemd/system").iterdir()}
    assert written == {AGENT_UNIT, GATEWAY_UNIT}


def test_printing_the_units_writes_nothing_and_installing_them_makes_a_folder_the_agent_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    places = ["--data-folder", str(data), "--run-folder", str(run)]
    assert main(["install", "--print", *places]) == 0
    shown = capsys.readouterr().out
    assert f"--config-path {data}/gateway/bootstrap.json" in shown
    assert not data.exists()
    assert main(["install", "--prefix", str(tmp_path / "root"), *places]) == 0
    assert (data / "gateway" / "bootstrap.json").exists()
    settings.prepare(settings.load({}, overrides={"data_folder": data, "run_folder": run})).lock.close()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(SettingsError, match="cannot be written"):
        install(made(), tmp_path)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@quarterdeck-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
        assert notifier.interval == 15
        notifier.ready("serving 2 deployments")
        notifier.alive()
        notifier.stopping()
        told = [systemd.recv(1024) for _ in range(3)]
    assert told == [b"READY=1\nSTATUS=serving 2 deployments", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_systemd_nothing_is_told_and_nothing_fails(tmp_path: Path) -> None:
    Notifier({}).ready()
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"})
    gone.ready()
    gone.alive()
    assert gone.interval is None
