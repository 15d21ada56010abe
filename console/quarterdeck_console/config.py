"""The fleet file: which hosts this console knows. Reads it, chooses hosts by name, changes it atomically.

Places, first match wins: `QUARTERDECK_HOST` (one agent by URL), the file in `QUARTERDECK_FLEET`, `fleet.toml` in the
XDG configuration folder, and without any the agent of this machine on its default socket. `QUARTERDECK_CONFIG` is the
agent's own settings file and is not looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quarterdeck_console.errors import NotFound, Usage

LOCAL = "local"
COLOURS = ("red", "yellow", "green", "blue", "magenta", "cyan", "white")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_KEYS = {"url", "token_file", "protected", "colour"}
_TOP_KEYS = {"hosts", "name", "colour", "read_only"}


@dataclass(frozen=True, slots=True)
class Host:
    """One agent the console knows: where it listens and how carefully it is to be treated."""

    name: str
    url: str
    token_file: str | None = None
    protected: bool = False
    colour: str | None = None

    @property
    def socket(self) -> Path:
        """The Unix socket's path."""
        return Path(self.url.removeprefix("unix://"))

    @property
    def token_path(self) -> Path:
        """Where the token lies: beside the socket unless the file says otherwise."""
        return Path(self.token_file).expanduser() if self.token_file else self.socket.parent / "token"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The hosts, and whence they are known (`None` where no file was read).

    `name` and `colour` are what the terminal UI says this fleet is; `read_only` has it refuse every change.
    """

    hosts: tuple[Host, ...]
    path: Path | None = None
    name: str = LOCAL
    colour: str | None = None
    read_only: bool = False


def default_socket(environ: Mapping[str, str], uid: int) -> Path:
    """Where this machine's agent listens by default; the agent's settings follow the same rule."""
    if socket := environ.get("QUARTERDECK_SOCKET"):
        return Path(socket)
    if folder := environ.get("QUARTERDECK_RUN_FOLDER"):
        return Path(folder) / "agent.sock"
    if uid == 0:
        return Path("/run/quarterdeck/agent.sock")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "quarterdeck/agent.sock"
    state = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".local/state")
    return Path(state) / "quarterdeck/agent.sock"


def fleet_path(environ: Mapping[str, str]) -> Path:
    """The fleet file's path, whether or not it is there."""
    if chosen := environ.get("QUARTERDECK_FLEET"):
        return Path(chosen).expanduser()
    from platformdirs import user_config_path

    return user_config_path("quarterdeck") / "fleet.toml"


def load(environ: Mapping[str, str], uid: int) -> Fleet:
    """The fleet as environment and file have it. Raises `Usage` with the file and key that are wrong."""
    override = environ.get("QUARTERDECK_HOST", "")
    if "://" in override:
        return Fleet((_host(LOCAL, {"url": override}, "QUARTERDECK_HOST"),))
    path = fleet_path(environ)
    hosts = read(path)
    if hosts is None:
        local = Host(LOCAL, f"unix://{default_socket(environ, uid)}", environ.get("QUARTERDECK_TOKEN_FILE"))
        return Fleet((local,))
    document = _document(path.read_text(encoding="utf-8"), path)
    name, colour = document.get("name", path.stem), document.get("colour")
    return Fleet(hosts, path, name, colour, document.get("read_only", False))


def read(path: Path) -> tuple[Host, ...] | None:
    """The hosts of a fleet file in its order; `None` when there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"cannot read {path}: {error}") from error
    return _parse(text, path)


def _document(text: str, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"{path} is not valid TOML: {error}") from error
    unknown = set(document) - _TOP_KEYS
    if unknown:
        hint = "the file holds name, colour, read_only and [hosts.NAME] tables only"
        raise Usage(f"{path}: unknown key {sorted(unknown)[0]!r}", hint=hint)
    if not isinstance(document.get("name", ""), str):
        raise Usage(f"{path}: `name` must be a string")
    if document.get("colour") is not None and document["colour"] not in COLOURS:
        raise Usage(f"{path}: `colour` must be one of {', '.join(COLOURS)}")
    if not isinstance(document.get("read_only", False), bool):
        raise Usage(f"{path}: `read_only` must be true or false")
    return document


def _parse(text: str, path: Path) -> tuple[Host, ...]:
    document = _document(text, path)
    tables = document.get("hosts", {})
    if not isinstance(tables, dict):
        raise Usage(f"{path}: `hosts` must be a table of tables, [hosts.NAME]")
    return tuple(_host(name, table, str(path)) for name, table in tables.items())


def _host(name: str, table: Any, where: str) -> Host:
    check_name(name, where)
    if not isinstance(table, dict):
        raise Usage(f"{where}: hosts.{name} must be a table", field=f"hosts.{name}")
    unknown = set(table) - _KEYS
    if unknown:
        key = sorted(unknown)[0]
        raise Usage(f"{where}: unknown key {key!r} in [hosts.{name}]", hint=f"known are {', '.join(sorted(_KEYS))}")
    url, token_file = table.get("url"), table.get("token_file")
    protected, colour = table.get("protected", False), table.get("colour")
    if not isinstance(url, str) or not url.startswith("unix:///"):
        raise Usage(f"{where}: the URL of host {name} must look like unix:///run/quarterdeck/agent.sock")
    if token_file is not None and not isinstance(token_file, str):
        raise Usage(f"{where}: token_file of host {name} must be a path")
    if not isinstance(protected, bool):
        raise Usage(f"{where}: protected of host {name} must be true or false")
    if colour is not None and colour not in COLOURS:
        raise Usage(f"{where}: colour of host {name} must be one of {', '.join(COLOURS)}")
    return Host(name, url, token_file, protected, colour)


def check_name(name: str, where: str) -> None:
    """Raise `Usage` unless `name` can name a host."""
    if not _NAME.fullmatch(name):
        raise Usage(
            f"{where}: {name!r} cannot name a host",
            hint="a name is lower-case letters, digits, dots, dashes and underscores, 63 at most",
        )


def choose(fleet: Fleet, patterns: tuple[str, ...]) -> tuple[Host, ...]:
    """The hosts whose names match any of these names or globs; all when none is given. Raises `NotFound`."""
    from fnmatch import fnmatchcase

    if not patterns:
        return fleet.hosts
    for pattern in patterns:
        if not any(fnmatchcase(host.name, pattern) for host in fleet.hosts):
            known = ", ".join(host.name for host in fleet.hosts) or "none"
            raise NotFound(f"no host matches {pattern!r}", hint=f"known hosts: {known}; add one with qd hosts add")
    return tuple(host for host in fleet.hosts if any(fnmatchcase(host.name, pattern) for pattern in patterns))


def add(path: Path, host: Host, replace: bool = False) -> None:
    """Write `host` into the fleet file, keeping everything else as it was written. Raises `Usage` when it is there."""
    _host(host.name, _table(host), "the new host")
    with _Locked(path) as text:
        hosts = _parse(text, path)
        if any(each.name == host.name for each in hosts):
            if not replace:
                raise Usage(f"host {host.name} is in {path} already", hint="give --replace to change it")
            text = _without(text, host.name)
        block = "\n".join(f"{key} = {_toml(value)}" for key, value in _table(host).items())
        text = text.rstrip("\n") + ("\n\n" if text.strip() else "") + f"[hosts.{_key(host.name)}]\n{block}\n"
        _write(path, text)


def remove(path: Path, name: str) -> None:
    """Take a host out of the fleet file, keeping everything else as it was written. Raises `NotFound`."""
    with _Locked(path) as text:
        if not any(each.name == name for each in _parse(text, path)):
            raise NotFound(f"host {name} is not in {path}")
        _write(path, _without(text, name))


def _without(text: str, name: str) -> str:
    """The file without the table of one host. A table ends where the next begins; comments before it stay."""
    import tomllib

    kept, inside = [], False
    heading = re.compile(rf'\s*\[\s*hosts\s*\.\s*(?:{re.escape(name)}|"{re.escape(name)}")\s*\]\s*(?:#.*)?')
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = heading.fullmatch(line.rstrip("\n")) is not None
        if not inside:
            kept.append(line)
    result = "".join(kept)
    if name in tomllib.loads(result).get("hosts", {}):
        raise Usage(f"host {name} is not written as a [hosts.{name}] table", hint="edit the file by hand")
    return result


def _table(host: Host) -> dict[str, str | bool]:
    table: dict[str, str | bool] = {"url": host.url}
    if host.token_file:
        table["token_file"] = host.token_file
    if host.protected:
        table["protected"] = True
    if host.colour:
        table["colour"] = host.colour
    return table


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def _toml(value: str | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    import json

    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


class _Locked:
    """The file's text under a lock that other consoles respect, so that no two changes are made of one reading."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        import fcntl

        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = os.open(self._path.parent, os.O_RDONLY)
        fcntl.flock(self._folder, fcntl.LOCK_EX)
        try:
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)


def _write(path: Path, text: str) -> None:
    import tempfile

    handle, name = tempfile.mkstemp(prefix=".fleet-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
