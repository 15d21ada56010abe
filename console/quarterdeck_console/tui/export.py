"""Deployments, GPUs, versions and operations as text: the JSON that `--json` prints for them, and the same as YAML."""

from __future__ import annotations

import json
import shlex
from typing import Any

from quarterdeck_console import gpus
from quarterdeck_console.clean import clean
from quarterdeck_console.cli import envelope
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui import commands, look
from quarterdeck_console.tui.messages import OpenItems, OpenText, Target


def text(message: OpenText | OpenItems, fleet: FleetState) -> tuple[str, str, str]:
    """Title, text, and the command that prints the same as JSON."""
    if isinstance(message, OpenItems):
        return _items(message, fleet)
    found = [(target, look.deployment(fleet, target)) for target in message.targets]
    items = [envelope.plain(status, target.host) for target, status in found if status is not None]
    told = envelope.items("DeploymentList", items, [])
    names = dict.fromkeys(target.name for target in message.targets)
    command = commands.words("status", *names, "--json", *commands.on_hosts(message.targets))
    title = f"{message.form} of {', '.join(names)}"
    if message.form == "json":
        return title, envelope.encode(told, pretty=True), command
    return title, _documents(items), command


def _items(message: OpenItems, fleet: FleetState) -> tuple[str, str, str]:
    """No command prints only these: those of the list of which they are, one after the other as jq takes them out."""
    found = [(key, _found(message, host, key[1])) for key in message.keys if (host := fleet.hosts.get(key[0]))]
    known = [(key, *each) for key, each in found if each is not None]
    items = [envelope.plain(item, key[0]) for key, _, item in known]
    names = list(dict.fromkeys(name for _, name, _ in known))
    title = f"{message.form} of {', '.join(names)}"
    command = _command(message, [item for _, _, item in known])
    if message.form == "json":
        return title, "\n".join(envelope.encode(item, pretty=True) for item in items), command
    return title, _documents(items), command


def _found(message: OpenItems, host: HostState, id_: str) -> tuple[str, dict[str, Any]] | None:
    """What a thing is called, and it as JSON has it."""
    if host.status is None:
        return None
    if message.kind == "gpus":
        device = next((each for each in gpus.devices(host.status) if each.gpu.uuid == id_), None)
        return None if device is None else (f"{device.what} on {host.name}", envelope.gpu(device))
    if message.kind == "versions":
        version = next((each for each in host.status.versions if each.id == id_), None)
        return None if version is None else (version.label, envelope.plain(version))
    operation = next((each for each in host.status.operations if each.id == id_), None)
    return None if operation is None else (f"{operation.kind} {operation.target}", envelope.plain(operation))


def _command(message: OpenItems, items: list[dict[str, Any]]) -> str:
    """The list that these are in, and how to take them out of it."""
    on_hosts = commands.on_hosts([Target(*key) for key in message.keys])
    if message.kind == "operations":
        ids = [key[1] for key in message.keys[:1]]
        return f"{commands.words('operations', *ids, '--json', *on_hosts)} | jq '.items[]'"
    name = "uuid" if message.kind == "gpus" else "id"
    wanted = " or ".join(dict.fromkeys(f".{name} == {json.dumps(item[name])}" for item in items))
    taken = shlex.quote(f".items[] | select({wanted})")
    return f"{commands.words(message.kind, '--json', *on_hosts)} | jq {taken}"


def _documents(items: list[Any]) -> str:
    return "\n---\n".join(yaml(item) for item in items)


def yaml(value: Any, depth: int = 0) -> str:
    """JSON's types as YAML 1.2, strings quoted as JSON does wherever plain would be read as something else."""
    pad = "  " * depth
    if isinstance(value, dict):
        if not value:
            return pad + "{}"
        return "\n".join(_entry(f"{pad}{_plain(str(key))}:", each, depth) for key, each in value.items())
    if isinstance(value, list | tuple):
        if not value:
            return pad + "[]"
        return "\n".join(_item(pad, each, depth) for each in value)
    return pad + _plain(value)


def _entry(head: str, value: Any, depth: int) -> str:
    if isinstance(value, dict | list | tuple) and value:
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
