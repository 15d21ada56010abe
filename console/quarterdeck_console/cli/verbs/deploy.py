"""`qd deploy`: serve a version under a name, replacing what serves there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quarterdeck_console.cli.call import Call, collect, verb
from quarterdeck_console.cli.changing import carry_out, options, wish_of
from quarterdeck_console.errors import NotFound, Usage

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import Limits


@verb(
    short_help="Serve a version under a name, replacing what serves there.",
    epilog="""
    qd deploy digits:2 --plan      # what would happen; changes nothing
    qd deploy digits:2 --why "better sevens"
    qd deploy digits:2 --as digits-canary --replicas 2 --host 'gpu-*'
    qd deploy digits:2 --env MODE=fast --env-file prod.env --env API_KEY    # API_KEY is taken from the environment
    qd deploy digits:2 --no-wait --json
    """,
)
@click.argument("version")
@click.option("--as", "name", metavar="NAME", help="The deployment's name; by default the model's.")
@click.option("--replicas", type=click.IntRange(0), metavar="N", help="How many replicas.")
@click.option(
    "--handover", type=click.Choice(["auto", "overlap", "hold"]), help="How the new one replaces the old one."
)
@click.option(
    "--env",
    "-e",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Environment; without a value it is taken from this shell's.",
)
@click.option(
    "--env-file",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Environment, a KEY=VALUE a line.",
)
@click.option(
    "--limit",
    multiple=True,
    metavar="KEY=NUMBER",
    help="A gateway limit: in_flight, queue, timeout, drain, hold, release.",
)
@click.option(
    "--warm",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long the old one is kept running for a rollback; 0 is off.",
)
@click.option(
    "--dwell",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long the new one must have been ready before the switch.",
)
@click.option("--golden/--no-golden", default=None, help="Whether the golden requests must pass before the switch.")
@click.option(
    "--rollout-deadline",
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="How long the host tries before the rollout has failed.",
)
@options
def command(
    call: Call,
    version: str,
    name: str | None,
    env: tuple[str, ...],
    env_file: tuple[Path, ...],
    limit: tuple[str, ...],
    rollout_deadline: float | None,
    **chosen: Any,
) -> int:
    """Deploy a version: start it, wait until it is ready, run its golden requests, switch, drain the old one.

    VERSION is a label like digits:2, or the start of an id. If anything fails the old one goes on serving, and the
    exit code is 1. Ctrl-C ends the wait, not the deploy. What is not said stays as the running revision has it.
    """
    from quarterdeck_agent.protocol import DeployRequest

    if name is None:
        name, colon, _ = version.partition(":")
        if not colon:
            raise Usage(f"{version} is not a label like digits:2", hint="give the deployment's name with --as NAME")
    taken = {key: chosen.pop(key) for key in ("replicas", "handover", "warm", "dwell", "golden", "why")}
    request = DeployRequest(
        version=version,
        env=environment(env, env_file) if env or env_file else None,
        limits=_limits(call, name, limit) if limit else None,
        deadline=rollout_deadline,
        **taken,
    )
    return carry_out(call, wish_of("deploy", name, request, chosen))


def environment(pairs: tuple[str, ...], files: tuple[Path, ...]) -> dict[str, str]:
    """Files first, then single ones over them. A value is never part of an error."""
    values: dict[str, str] = {}
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise Usage(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if line and not line.startswith("#"):
                key, value = _pair(line.removeprefix("export "), f"{path}:{number}")
                values[key] = value
    for pair in pairs:
        key, value = _pair(pair, "--env")
        values[key] = value
    return values


def _pair(text: str, where: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not key.replace("_", "a").isalnum() or not key.isascii() or key[0].isdigit():
        raise Usage(f"{where}: this does not name an environment variable", hint="write KEY=VALUE")
    if not equals:
        if key not in os.environ:
            raise Usage(f"{where}: {key} is not set in this shell", hint=f"write {key}=VALUE, or export it first")
        return key, os.environ[key]
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
    return key, value[1:-1] if quoted and where != "--env" else value


def _limits(call: Call, name: str, pairs: tuple[str, ...]) -> Limits:
    """The running revision's limits with these changed; the host takes limits only as a whole."""
    from dataclasses import fields, replace

    from quarterdeck_agent.protocol import Limits

    changes: dict[str, Any] = {}
    known: dict[str, Any] = {each.name: type(getattr(Limits(), each.name)) for each in fields(Limits)}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known:
            raise Usage(f"--limit: there is no limit {key!r}", hint=f"there are {', '.join(known)}")
        try:
            changes[key] = known[key](value)
        except ValueError as error:
            raise Usage(f"--limit {key}: {value!r} is not a number") from error
    found, errors = collect(call, (call.target(),), lambda client: client.deployment(name))
    if errors and not isinstance(errors[0], NotFound):
        raise errors[0]
    base = found[0][1].revisions[0].spec.limits if found and found[0][1].revisions else Limits()
    return replace(base, **changes)
