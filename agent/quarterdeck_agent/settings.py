"""The agent's settings: from `agent.toml`, then `QUARTERDECK_*` of the environment, then explicit overrides.

This module reads settings and prepares the two folders; it starts and chooses nothing. Where things lie when nothing
is set, in this order (the console's `config.py` follows the same rule to find the local agent):

* run folder: `QUARTERDECK_RUN_FOLDER`; `/run/quarterdeck` for root; `$XDG_RUNTIME_DIR/quarterdeck`; without that
  `$XDG_STATE_HOME/quarterdeck` (`~/.local/state/quarterdeck`).
* socket: `QUARTERDECK_SOCKET`, otherwise `agent.sock` in the run folder. Token: `QUARTERDECK_TOKEN_FILE`, otherwise
  `token` beside the socket.
* data folder: `QUARTERDECK_DATA_FOLDER`; `/var/lib/quarterdeck` for root; `$XDG_DATA_HOME/quarterdeck`
  (`~/.local/share/quarterdeck`).
* settings file: `QUARTERDECK_CONFIG`; `/etc/quarterdeck/agent.toml` for root;
  `$XDG_CONFIG_HOME/quarterdeck/agent.toml`.
"""

# ruff: noqa: RUF009  `_setting` returns a dataclass field, which is what a dataclass wants there

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from quarterdeck_agent.errors import SettingsError

SOCKET_PATH_MAX = 107  # sun_path holds 108 bytes with its NUL (unix(7))
PREFIX = "QUARTERDECK_"
TOKEN_PREFIX = "qd_"  # noqa: S105  lets scanners recognise a leaked token; no secret itself
UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9}
GPU = r"\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]{1,90}"
LABEL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

Read = Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("must be a line of text")
    return value


def _path(value: Any) -> Path:
    path = Path(value if isinstance(value, Path) else _text(value)).expanduser()
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _size(value: Any) -> int:
    match = re.fullmatch(r"\s*(\d{1,15})\s*([A-Za-z]*)\s*", str(value)) if not isinstance(value, bool) else None
    if match is None or match[2].lower() not in UNITS or not isinstance(value, int | str):
        raise ValueError('must be a size such as 1048576 or "512MiB"')
    return int(match[1]) * UNITS[match[2].lower()]


def _whole(low: int, high: int) -> Read:
    def read(value: Any) -> int:
        number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value) else value
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    return read


def _seconds(low: float, high: float) -> Read:
    def read(value: Any) -> float:
        number = float(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) else value
        if not isinstance(number, int | float) or isinstance(number, bool) or not low <= number <= high:
            raise ValueError(f"must be seconds from {low:g} to {high:g}")
        return float(number)

    return read


def _one_of(*words: str) -> Read:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return str(value)

    return read


def _switch(value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError("must be true or false")
    return words[value.lower()]


def _labels(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What GPUs are called, by uuid or index: a table of lists, or the text `0=fast,big;GPU-…=slow`."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(";") if part.strip()]
        value = {gpu.strip(): [label.strip() for label in labels.split(",")] for gpu, _, labels in pairs}
    if not isinstance(value, dict) or not all(re.fullmatch(GPU, gpu) for gpu in value):
        raise ValueError("must name GPUs by uuid or index")
    for labels in value.values():
        if not isinstance(labels, list) or not all(isinstance(x, str) and re.fullmatch(LABEL, x) for x in labels):
            raise ValueError("must give each GPU a list of words such as training or rack-2")
    return tuple((gpu, tuple(labels)) for gpu, labels in value.items())


def _setting(key: str, read: Read, default: Any = MISSING) -> Any:
    """A field that `agent.toml` calls `key` (`table.name`) and that `read` turns into its value or refuses."""
    return field(default=default, metadata={"key": key, "read": read})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All the agent can be told. Sizes in bytes, intervals in seconds; environment names are `QUARTERDECK_` + field."""

    data_folder: Path = _setting("data_folder", _path)
    run_folder: Path = _setting("run_folder", _path)
    socket: Path = _setting("socket", _path)
    token_file: Path = _setting("token_file", _path)
    engine: str = _setting("engine", _one_of("auto", "docker", "process", "simulated"), "auto")
    docker_url: str = _setting("docker_url", _text, "unix:///var/run/docker.sock")
    gateway_host: str = _setting("gateway.host", _text, "127.0.0.1")
    gateway_port: int = _setting("gateway.port", _whole(1, 65_535), 8_080)
    gateway_concurrency: int = _setting("gateway.concurrency", _whole(1, 256), 1)
    gateway_supervised: bool = _setting("gateway.supervised", _switch, False)
    envoy: str | None = _setting("gateway.envoy", _text, None)
    log_file_size: int = _setting("logs.file_size", _size, 10 * 2**20)
    log_files: int = _setting("logs.files", _whole(2, 100), 10)
    log_deployment_size: int = _setting("logs.deployment_size", _size, 2**30)
    min_free: int = _setting("min_free", _size, 2**30)
    upload_size: int = _setting("uploads.size", _size, 2**40)
    body_size: int = _setting("api.body_size", _size, 2**20)
    header_deadline: float = _setting("api.header_deadline", _seconds(0.1, 300), 10.0)
    body_idle: float = _setting("api.body_idle", _seconds(0.1, 600), 60.0)
    connections: int = _setting("api.connections", _whole(8, 65_536), 512)
    shutdown: float = _setting("api.shutdown", _seconds(0, 60), 1.0)
    probe_interval: float = _setting("probe.interval", _seconds(0.05, 60), 1.0)
    probe_deadline: float = _setting("probe.deadline", _seconds(0.05, 60), 2.0)
    sample_interval: float = _setting("sampler.interval", _seconds(0.1, 60), 1.0)
    history_days: int = _setting("history.days", _whole(1, 3_650), 30)
    history_size: int = _setting("history.size", _size, 256 * 2**20)
    gpu_labels: tuple[tuple[str, tuple[str, ...]], ...] = _setting("gpus.labels", _labels, ())
    log_level: str = _setting("log_level", _one_of("debug", "info", "warning", "error"), "info")

    @property
    def store_path(self) -> Path:
        return self.data_folder / "store.sqlite"

    @property
    def history_path(self) -> Path:
        return self.data_folder / "history.sqlite"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The folders are there and ours alone: this data folder's id, the token, and the lock held while we run."""

    instance: str
    token: str = field(repr=False)
    lock: IO[str] = field(repr=False, compare=False)


def load(
    environ: Mapping[str, str] | None = None,
    *,
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    root: bool | None = None,
) -> Settings:
    """Read the settings. `config` must exist when it is named; an override of `None` is not set.

    Raises `SettingsError` naming the file, variable or override, the key, and what it must be.
    """
    environ = os.environ if environ is None else environ
    root = os.geteuid() == 0 if root is None else root
    values = _from_file(_config_path(environ, config, root), required=bool(config or environ.get(f"{PREFIX}CONFIG")))
    known = {entry.name: entry.metadata["read"] for entry in fields(Settings)}
    for name, read in known.items():
        variable = PREFIX + name.upper()
        if environ.get(variable):
            values[name] = _checked(read, environ[variable], f"the environment variable {variable}", name)
    for name, value in (overrides or {}).items():
        if name not in known:
            raise SettingsError(f"There is no setting called {name!r}", field=name)
        if value is not None:
            values[name] = _checked(known[name], value, f"--{name.replace('_', '-')}", name)
    return _checked_whole(Settings(**_with_places(values, environ, root)))


def prepare(settings: Settings) -> Prepared:
    """Make both folders 0700, take the data folder's lock, and read or make the instance id and the token.

    Raises `SettingsError` where a folder or file belongs to somebody else, is open to others, or is in use.
    """
    for folder in (settings.data_folder, settings.run_folder, settings.socket.parent, settings.token_file.parent):
        private_folder(folder)
    lock = _lock(settings.data_folder / "lock")
    try:
        instance = _secret_file(settings.data_folder / "instance", r"[0-9a-f]{32}", lambda: secrets.token_hex(16))
        token = _secret_file(
            settings.token_file, TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}", lambda: TOKEN_PREFIX + secrets.token_urlsafe(32)
        )
    except BaseException:
        lock.close()
        raise
    return Prepared(instance, token, lock)


def _config_path(environ: Mapping[str, str], config: Path | None, root: bool) -> Path:
    if config is not None:
        return config
    if named := environ.get(f"{PREFIX}CONFIG"):
        return Path(named)
    return (Path("/etc/quarterdeck") if root else _xdg(environ, "XDG_CONFIG_HOME", ".config")) / "agent.toml"


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """A base folder of ours; the XDG specification says that a relative value is to be ignored."""
    value = environ.get(variable, "")
    home = environ.get("HOME") or str(Path.home())
    return (Path(value) if value.startswith("/") else Path(home) / fallback) / "quarterdeck"


def _with_places(values: dict[str, Any], environ: Mapping[str, str], root: bool) -> dict[str, Any]:
    places = dict(values)
    if "data_folder" not in places:
        places["data_folder"] = Path("/var/lib/quarterdeck") if root else _xdg(environ, "XDG_DATA_HOME", ".local/share")
    if "run_folder" not in places:
        runtime = environ.get("XDG_RUNTIME_DIR", "")
        state = _xdg(environ, "XDG_STATE_HOME", ".local/state")
        user = Path(runtime) / "quarterdeck" if runtime.startswith("/") else state
        places["run_folder"] = Path("/run/quarterdeck") if root else user
    places.setdefault("socket", places["run_folder"] / "agent.sock")
    places.setdefault("token_file", places["socket"].parent / "token")
    return places


def _from_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise SettingsError(f"There is no settings file {path}", hint="Name one that exists.") from None
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}", hint="Mend that line; see toml.io.") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", hint="Let the agent's user read it.") from None
    by_key = {entry.metadata["key"]: entry for entry in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in _flat(document).items():
        if key not in by_key:
            hint = "Remove it, or use one of: " + ", ".join(sorted(by_key)) + "."
            raise SettingsError(f"{path}: there is no setting called {key!r}", field=key, hint=hint)
        values[by_key[key].name] = _checked(by_key[key].metadata["read"], value, str(path), key)
    return values


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": found for inner, found in value.items()})
        else:
            flat[key] = value
    return flat


def _checked(read: Read, value: Any, where: str, key: str) -> Any:
    try:
        return read(value)
    except ValueError as error:
        shown = repr(value)[:80]
        raise SettingsError(f"{where}: {key} is {shown}; it {error}", field=key, hint=f"Set {key} anew.") from None


def _checked_whole(settings: Settings) -> Settings:
    length = len(os.fsencode(settings.socket))
    if length > SOCKET_PATH_MAX:
        raise SettingsError(
            f"The socket's path {settings.socket} has {length} bytes; the kernel takes {SOCKET_PATH_MAX}",
            field="socket",
            hint="Set run_folder to a shorter path, for example below /tmp or /run.",
        )
    return settings


def private_folder(folder: Path) -> None:
    """Make a folder that only we may enter. Raises `SettingsError` where it is somebody else's or open to others."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        hint = "Make it yourself for the agent's user, or set another folder."
        raise SettingsError(f"The folder {folder} cannot be made: {error.strerror}", hint=hint) from None
    if found.st_uid != os.geteuid():
        hint = f"Run `chown {os.geteuid()} {folder}`, run the agent as user {found.st_uid}, or set another folder."
        raise SettingsError(f"The folder {folder} belongs to user {found.st_uid}, not {os.geteuid()}", hint=hint)
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise SettingsError(f"The folder {folder} is open to others (mode {mode:o})", hint=f"Run `chmod 700 {folder}`.")


def _lock(path: Path) -> IO[str]:
    descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
    handle = os.fdopen(descriptor, "r+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        hint = "Stop the other one, or give this one a data_folder of its own."
        raise SettingsError(f"Another agent runs with the data folder {path.parent}", hint=hint) from None
    return handle


def _secret_file(path: Path, pattern: str, make: Callable[[], str]) -> str:
    """The one line in `path`; made with 0600, whole or not at all, when it is not there."""
    if not path.exists() and not path.is_symlink():
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(_opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as handle:
            handle.write(make() + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    with os.fdopen(_opened(path, os.O_RDONLY), "r", encoding="ascii", errors="replace") as handle:
        text = handle.read(256).strip()
    if not re.fullmatch(pattern, text):
        raise SettingsError(
            f"{path} does not hold what the agent wrote there", hint=f"Remove {path}; a new one is made."
        )
    return text


def _opened(path: Path, flags: int) -> int:
    """Open a file of ours without following a link; refuse one that others own or may read."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = f"Look at what {path} is; remove it if it is not yours."
        raise SettingsError(f"{path} cannot be opened: {error.strerror}", hint=hint) from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return descriptor
    os.close(descriptor)
    hint = f"Run `chown {os.geteuid()} {path}; chmod 600 {path}`."
    raise SettingsError(f"{path} is not a file of the agent's user alone (mode {found.st_mode:o})", hint=hint)
