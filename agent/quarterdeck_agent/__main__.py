"""`qd-agent`: reads the command line, and hands over to the part that does the work. Each is imported only then."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.settings import Settings, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when it went well, 1 when it failed, 2 for a wrong command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except AgentError as error:
        _tell(f"qd-agent: {error.detail}")
        if error.hint:
            _tell(f"  {error.hint}")
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("quarterdeck_"):
            raise
        _tell(f"qd-agent: this Python has no {error.name}, which the agent needs")
        _tell("  Install it with the agent's packages: pip install 'quarterdeck[agent]'")
        return 1
    except KeyboardInterrupt:
        return 130


def agent_version() -> str:
    """The installed distribution's version."""
    try:
        return version("quarterdeck")
    except PackageNotFoundError:
        return "0+source"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qd-agent",
        description="The Quarterdeck agent: keeps models running on this host and answers the console.",
        epilog="Settings: agent.toml, then QUARTERDECK_* in the environment, then the options of a command.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the agent in the foreground", description=_run.__doc__)
    _common(run)
    run.add_argument("--engine", choices=("auto", "docker", "process", "simulated"), help="what runs replicas")
    run.add_argument("--gateway-port", type=int, metavar="PORT", help="where models are called (default 8080)")
    run.add_argument("--gateway-host", metavar="ADDRESS", help="address of the gateway (default 127.0.0.1)")
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    run.set_defaults(run=_run)

    install = commands.add_parser(
        "install",
        help="write the systemd units of agent and gateway",
        description="Write quarterdeck-agent.service and quarterdeck-gateway.service and say what to do next.",
    )
    _common(install)
    install.add_argument("--print", dest="show", action="store_true", help="print the units, write nothing")
    install.add_argument("--prefix", type=Path, default=Path("/"), help="write below this folder (default /)")
    install.set_defaults(run=_install)

    gateway = commands.add_parser(
        "gateway",
        help="run the gateway in the foreground (for systemd)",
        description="Write the gateway's configuration and become Envoy.",
    )
    _common(gateway)
    gateway.set_defaults(run=_gateway)

    image = commands.add_parser(
        "runtime-image",
        help="build the container image of the python and torchscript runtimes from this machine's Python",
        description="Build the image that the python and torchscript runtimes use on the docker engine, from this "
        "interpreter and its packages. Needs no registry and no network.",
    )
    _common(image)
    image.add_argument("--tag", help="name of the image (default: the one the runtimes ask for)")
    image.add_argument("--rebuild", action="store_true", help="build it also when one of the same files is there")
    image.set_defaults(run=_runtime_image)

    show = commands.add_parser("version", help="print the version")
    show.set_defaults(run=_version)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (default: agent.toml)")
    parser.add_argument("--data-folder", type=Path, metavar="FOLDER", help="where everything is kept")
    parser.add_argument("--run-folder", type=Path, metavar="FOLDER", help="where the socket and the token are")


def _settings(arguments: argparse.Namespace) -> Settings:
    names = ("data_folder", "run_folder", "engine", "gateway_port", "gateway_host", "log_level")
    overrides = {name: getattr(arguments, name, None) for name in names}
    return load(os.environ, config=arguments.config, overrides=overrides)


def _run(arguments: argparse.Namespace) -> int:
    """Run the agent in the foreground until SIGTERM or SIGINT. What it started goes on running."""
    from quarterdeck_agent.host import run

    asyncio.run(run(_settings(arguments), agent_version()))
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from quarterdeck_agent.host import gateway_command
    from quarterdeck_agent.install import install, own_command, units

    settings = _settings(arguments)
    gateway = gateway_command(settings, write=not arguments.show)
    wanted = units(settings, agent=own_command(), gateway=gateway)
    if arguments.show:
        sys.stdout.write("\n".join(f"# {unit.name}\n{unit.text}" for unit in wanted))
        return 0
    for line in install(wanted, arguments.prefix):
        _say(line)
    return 0


def _gateway(arguments: argparse.Namespace) -> int:
    from quarterdeck_agent.host import gateway_command

    settings = _settings(arguments)
    command = gateway_command(settings)
    os.execv(command[0], command)  # noqa: S606  systemd watches the gateway itself, not a parent of it


def _runtime_image(arguments: argparse.Namespace) -> int:
    """The image's id goes to stdout; how it went, to stderr."""
    from quarterdeck_agent.drivers.base import Progress
    from quarterdeck_agent.runtime_image import build, default_tag

    began, told = time.monotonic(), list[int]()

    def tell(progress: Progress) -> None:
        # A line for each tenth: as good in a log as on a terminal.
        tenth = 10 * (progress.done or 0) // (progress.total or 1)
        if tenth not in told:
            told.append(tenth)
            _tell(f"{progress.text}: {10 * tenth} % of {(progress.total or 0) / 1e6:.0f} MB")

    tag = arguments.tag or default_tag()
    made = build(_settings(arguments).docker_url, tag, tell, rebuild=arguments.rebuild)
    outcome = "built" if told else "there already, made of the same files"
    _tell(f"{tag}: {outcome} ({time.monotonic() - began:.1f} s)")
    _say(made)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _version(_: argparse.Namespace) -> int:
    _say(agent_version())
    return 0


if __name__ == "__main__":
    sys.exit(main())
