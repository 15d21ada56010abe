"""Deployments as text: the exact JSON that `qd status --json` prints for them, and the same as YAML."""

from __future__ import annotations

import json
from typing import Any

from quarterdeck_console.clean import clean
from quarterdeck_console.cli import envelope
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import commands, look
from quarterdeck_console.tui.messages import OpenText


def text(message: OpenText, fleet: FleetState) -> tuple[str, str, str]:
    """Title, text, and the command that prints the same."""
    found = [(target, look.deployment(fleet, target)) for target in message.targets]
    items = [envelope.plain(status, target.host) for target, status in found if status is not None]
    told = envelope.items("DeploymentList", items, [])
    names = dict.fromkeys(target.name for target in message.targets)
    command = commands.words("status", *names, "--json", *commands.on_hosts(message.targets))
    title = f"{message.form} of {', '.join(names)}"
    if message.form == "json":
        return title, envelope.encode(told, pretty=True), command
    return title, "\n---\n".join(yaml(item) for item in items), command


def yaml(value: Any, depth: int = 0) -> str:
    """JSON's types as YAML 1.2, strings quoted as JSON does wherever plain would be read as something else."""
    pad = "  " * depth
    if isinstance(value, dict):
        if not value:
            return pad + "{}"
        return "\n".join(_entry(f"{pad}{_plain(str(key))}:", each, depth) for key, each in value.items())
    if isinstance(value, list):
        if not value:
            return pad + "[]"
        return "\n".join(_item(pad, each, depth) for each in value)
    return pad + _plain(value)


def _entry(head: str, value: Any, depth: int) -> str:
    if isinstance(value, dict | list) and value:
        return f"{head}\n{yaml(value, depth + 1)}"
    return f"{head} {yaml(value)}"


def _item(pad: str, value: Any, depth: int) -> str:
    return f"{pad}- {yaml(value, depth + 1).lstrip()}"


def _plain(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    text = clean(value)
    words = text.replace("_", "").replace("-", "").replace(" ", "")
    plain = words.isalnum() and text[:1].isalpha() and text == text.strip() and text.casefold() not in _TAKEN
    return text if plain else json.dumps(text, ensure_ascii=False)


_TAKEN = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
"""Words that YAML 1.1 readers take for something else."""
