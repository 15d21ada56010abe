"""Writes the two systemd units: one for the agent, one for the gateway that outlives it. Starts nothing.

`Unit` texts are pure functions of the settings; `install` writes them only where they differ, so it may be repeated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quarterdeck_agent.errors import SettingsError
from quarterdeck_agent.settings import Settings

AGENT_UNIT = "quarterdeck-agent.service"
GATEWAY_UNIT = "quarterdeck-gateway.service"
UNITS_FOLDER = Path("etc/systemd/system")

# What both processes can do without. The agent's engine starts other programs, so neither namespaces nor system calls
# are restricted there: replicas of the process engine would inherit that.
COMMON = """\
NoNewPrivileges=yes
ProtectControlGroups={cgroups}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
UMask=0077
"""

AGENT = """\
[Unit]
Description=Quarterdeck agent: keeps models running on this host
Wants=network-online.target {gateway}
After=network-online.target docker.service {gateway}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# Replicas of the process engine live on when the agent ends: only its own process is stopped. They are in groups of
# their own below the unit's, with limits of their own; one that is killed for its memory is the agent's business.
KillMode=process
Delegate=yes
DelegateSubgroup=agent
OOMPolicy=continue
TasksMax=infinity
Restart=always
RestartSec=2
WatchdogSec=30
TimeoutStopSec=20
{folders}{environment}{common}
[Install]
WantedBy=multi-user.target
"""

GATEWAY = """\
[Unit]
Description=Quarterdeck gateway: Envoy in front of the models
After=network.target
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart={command}
WorkingDirectory={gateway_folder}
StandardError=append:{log}
Restart=always
RestartSec=1
TimeoutStopSec=75
LimitNOFILE=65536
{common}PrivateTmp={tmp}
PrivateDevices=yes
ProtectSystem=strict
ProtectHome={home}
ReadWritePaths={gateway_folder}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SystemCallFilter=@system-service
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit file: where it goes below the prefix, and its text."""

    name: str
    text: str


def units(settings: Settings, *, agent: Sequence[str], gateway: Sequence[str]) -> tuple[Unit, Unit]:
    """The agent's and the gateway's unit. `agent` and `gateway` are command lines that begin with an absolute path;
    the gateway's is what its driver prepared.
    """
    folder = settings.data_folder / "gateway"
    agent_text = AGENT.format(
        gateway=GATEWAY_UNIT,
        command=" ".join(_word(word) for word in agent),
        folders=_folders(settings),
        environment=_environment(settings),
        common=COMMON.format(cgroups="no"),
    )
    gateway_text = GATEWAY.format(
        command=" ".join(_word(word) for word in gateway),
        log=str(folder / "envoy.log").replace("%", "%%"),
        gateway_folder=_word(str(folder)),
        home=_hidden(("/home", "/root", "/run/user"), folder, Path(gateway[0])),
        tmp=_hidden(("/tmp", "/var/tmp"), folder, Path(gateway[0])),  # noqa: S108  what systemd would hide
        common=COMMON.format(cgroups="yes"),
    )
    return Unit(AGENT_UNIT, agent_text), Unit(GATEWAY_UNIT, gateway_text)


def install(wanted: tuple[Unit, ...], prefix: Path = Path("/")) -> list[str]:
    """Write the units below `prefix` and return what was done, a line each, and what to do next."""
    folder = prefix / UNITS_FOLDER
    done = []
    for unit in wanted:
        path = folder / unit.name
        before = path.read_text() if path.exists() else None
        if before == unit.text:
            done.append(f"unchanged  {path}")
            continue
        _write(path, unit.text)
        done.append(f"{'written' if before is None else 'updated'}    {path}")
    return [*done, "next: systemctl daemon-reload", f"next: systemctl enable --now {AGENT_UNIT} {GATEWAY_UNIT}"]


def own_command() -> tuple[str, ...]:
    """How this agent is run: the `qd-agent` beside this interpreter, or the interpreter with the module."""
    beside = Path(sys.executable).with_name("qd-agent")
    start = (str(beside),) if beside.exists() else (sys.executable, "-m", "quarterdeck_agent")
    return (*start, "run")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        hint = "Run it as root, or with --print and put the units where they belong."
        raise SettingsError(f"{path} cannot be written: {error.strerror}", hint=hint) from None


def _hidden(places: Sequence[str], *needed: Path) -> str:
    """Whether the unit may do without these places: `no` where its folder or its program lies there."""
    return "no" if any(path.is_relative_to(place) for path in needed for place in places) else "yes"


def _folders(settings: Settings) -> str:
    """systemd makes the standard folders itself; others are the agent's to make."""
    lines = ""
    if settings.data_folder == Path("/var/lib/quarterdeck"):
        lines += "StateDirectory=quarterdeck\nStateDirectoryMode=0700\n"
    if settings.run_folder == Path("/run/quarterdeck"):
        lines += "RuntimeDirectory=quarterdeck\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes\n"
    return lines


def _environment(settings: Settings) -> str:
    places = {"QUARTERDECK_DATA_FOLDER": settings.data_folder, "QUARTERDECK_RUN_FOLDER": settings.run_folder}
    lines = "".join(f"Environment={_word(f'{name}={path}')}\n" for name, path in places.items())
    return lines + "Environment=QUARTERDECK_GATEWAY_SUPERVISED=true\n"


def _word(text: str) -> str:
    """One word of a unit file (systemd.syntax(7)): `%` and `$` mean themselves, spaces and quotes stay inside."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(character in ' \t"\\;' for character in text) else escaped
