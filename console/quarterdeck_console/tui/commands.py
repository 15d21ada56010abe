"""Pure: the `qd …` command line that does what a key does, so that whoever clicks learns to script."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from quarterdeck_agent.protocol import DeployRequest, RollbackRequest, ScaleRequest
from quarterdeck_console.tui.messages import Target, Wish


def words(*parts: str) -> str:
    """A command line of these words, quoted where a shell needs it."""
    return "qd " + " ".join(shlex.quote(part) for part in parts)


def on_hosts(targets: Sequence[Target]) -> list[str]:
    """The options that name these targets' hosts, each once."""
    return [part for host in dict.fromkeys(target.host for target in targets) for part in ("--host", host)]


def of_wish(wish: Wish) -> tuple[str, ...]:
    """The commands of a wish: one for each name, since a verb works on one name over many hosts."""
    made = []
    for name in dict.fromkeys(target.name for target in wish.targets):
        targets = [target for target in wish.targets if target.name == name]
        made.append(words(*_verb(wish, name), *on_hosts(targets)))
    return tuple(made)


def _verb(wish: Wish, name: str) -> list[str]:
    request = wish.request
    if isinstance(request, DeployRequest):
        return _deploy(request, name)
    if isinstance(request, RollbackRequest):
        return ["rollback", name, *(["--to", str(request.to)] if request.to is not None else [])]
    if isinstance(request, ScaleRequest):
        return ["scale", name, str(request.replicas)]
    return ["rm" if wish.kind == "remove" else wish.kind, name]


def _deploy(request: DeployRequest, name: str) -> list[str]:
    made = ["deploy", request.version]
    if request.version.partition(":")[0] != name:
        made += ["--as", name]
    if request.replicas is not None:
        made += ["--replicas", str(request.replicas)]
    if request.handover is not None:
        made += ["--handover", request.handover]
    return made + (["--why", request.why] if request.why else [])
