"""The catalogue of serving runtimes: TOML files, checked to the last field, and what they make of a version.

An entry tells with which image and command a version is served, on which port and paths. A file in the data folder
adds an entry or replaces a built-in one of the same name. Nothing here starts anything.

Texts of an entry (command, env, paths, image) may hold `{settings.x}` (the version's own setting), `{host}` (the
address to listen on), `{cpus}` and `{threads}` (the CPU ask; empty and 1 without one), `{gpus}`, `{model}`,
`{version}` and `{release}` (of the agent), filled in here, and `{port}`, `{bundle}`, `{name}`, `{python}`, which the
engine fills in when it starts a replica. An item of a command that is nothing but a setting with a list becomes the
list's items. A variable whose value comes out empty is left out. A setting called image, command, port, health_path
or predict_path replaces what the entry says under that name.

Under docker `command` follows the image's own entrypoint, as in `docker run IMAGE COMMAND`; the process engine runs
it as it is, in the bundle's folder.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from quarterdeck_agent.bundle import URL_PATH, ModelConfig, check_env, check_name
from quarterdeck_agent.errors import InvalidInput, NotFound
from quarterdeck_agent.fields import Fields, check_json, check_text
from quarterdeck_agent.protocol import Runtime

SettingType = Literal["text", "integer", "number", "boolean", "list", "table"]

ENGINES = ("process", "docker")
PROTOCOLS = ("oip-v2", "openai", "ollama", "djl", "http")
FORMATS = ("safetensors", "gguf", "onnx", "torchscript", "torch.export", "pickle", "plain")
FILLED_BY_ENGINE = ("port", "bundle", "name", "python")
FILLED_HERE = ("host", "cpus", "threads", "gpus", "model", "version", "release")
DISTRIBUTION = "quarterdeck"

_PLACEHOLDER = re.compile(r"\{(settings\.)?([a-z][a-z0-9_]*)\}")
_SETTING_ALONE = re.compile(r"\{settings\.([a-z][a-z0-9_]*)\}")
_SETTING_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "table": (dict,),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key that a version may put under `[settings]` of its `model.toml`."""

    name: str
    type: SettingType
    required: bool = False
    default: Any = None
    help: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one replica of a version: what goes into a `ReplicaSpec`, and where to ask it.

    `facts_path` tells what the replica runs on; with `own_torch` it runs on the torch of the agent's own interpreter.
    """

    image: str | None
    command: tuple[str, ...]
    env: dict[str, str]
    port: int
    health_path: str
    predict_path: str
    facts_path: str | None = None
    own_torch: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeEntry:
    """One runtime of the catalogue."""

    name: str
    title: str
    protocol: str
    port: int
    health_path: str
    predict_path: str
    image: str | None = None
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    engines: tuple[str, ...] = ENGINES
    settings: tuple[Setting, ...] = ()
    homepage: str | None = None
    origin: Literal["built in", "user"] = "built in"
    facts_path: str | None = None
    own_torch: bool = False

    def described(self) -> Runtime:
        """The entry as the wire has it."""
        return Runtime(
            name=self.name,
            title=self.title,
            protocol=self.protocol,
            port=self.port,
            health_path=self.health_path,
            predict_path=self.predict_path,
            formats=self.formats,
            engines=self.engines,
            image=self.image.replace("{release}", release()) if self.image else None,
            command=self.command,
            origin=self.origin,
            homepage=self.homepage,
        )

    def check(self, model: ModelConfig) -> dict[str, Any]:
        """The version's settings with defaults filled in; raises `InvalidInput` with the setting that is wrong."""
        known = {setting.name: setting for setting in self.settings}
        for key in model.settings:
            if key not in known:
                raise InvalidInput(
                    f"the runtime {self.name!r} has no setting {key[:80]!r}",
                    field=f"settings.{key[:80]}",
                    hint=f"It knows: {', '.join(sorted(known)) or 'none'}.",
                )
        return {setting.name: _checked(setting, model.settings, self.name) for setting in self.settings}

    def launch(self, model: ModelConfig, engine: str) -> Launch:
        """What starts a replica of this version on this engine (`simulated` counts as any).

        The environment is the entry's with the version's own on top. Raises `InvalidInput` for a wrong setting and
        for an engine that cannot run this runtime.
        """
        if engine in ENGINES and engine not in self.engines:
            raise InvalidInput(
                f"the runtime {self.name!r} does not run on the engine {engine!r}",
                field="runtime",
                hint=f"It runs on: {', '.join(self.engines)}. Choose another runtime or another host.",
            )
        settings = self.check(model)
        facts = _facts(model, engine)
        filled = _Filler(facts, settings)
        env = {key: filled.text(value) for key, value in self.env.items()}
        image, command = settings.get("image") or self.image, settings.get("command")
        return Launch(
            image=filled.text(image) if image and engine != "process" else None,
            # What a version says itself may name the facts, but not its own settings: those it has at hand.
            command=_Filler(facts, {}).words(command) if command else filled.words(self.command),
            env={key: value for key, value in env.items() if value} | model.env,
            port=settings.get("port") or self.port,
            health_path=model.health.path or self._url_path(filled, settings, "health_path", self.health_path),
            predict_path=self._url_path(filled, settings, "predict_path", self.predict_path),
            facts_path=self.facts_path,
            own_torch=self.own_torch and not (settings.get("image") or command),
        )

    def _url_path(self, filled: _Filler, settings: Mapping[str, Any], key: str, own: str) -> str:
        path = filled.text(settings.get(key) or own)
        if not URL_PATH.fullmatch(path):
            raise InvalidInput(f"{key} of the runtime {self.name!r} came out as {path[:200]!r}", field=key)
        return path


class Catalogue:
    """The runtimes of this host. `problems` tells which of the user's files were left out, and why."""

    def __init__(self, entries: Mapping[str, RuntimeEntry], problems: tuple[str, ...] = ()) -> None:
        self._entries = dict(entries)
        self.problems = problems

    def get(self, name: str) -> RuntimeEntry:
        """The entry of that name; raises `NotFound` with the names there are."""
        if name not in self._entries:
            raise NotFound(
                f"there is no runtime {name[:80]!r} on this host",
                field="runtime",
                hint=f"Known here: {', '.join(sorted(self._entries))}. Others go into the data folder's runtimes/.",
            )
        return self._entries[name]

    def list(self) -> tuple[Runtime, ...]:
        """All entries by name, as the wire has them."""
        return tuple(self._entries[name].described() for name in sorted(self._entries))


def load(built_in: Path, user: Path) -> Catalogue:
    """Read both folders. A built-in file that is wrong raises; one of the user's is left out and told of.

    A typing error in the user's folder must not keep the agent from looking after what runs already.
    """
    entries = {path.stem: read(path, "built in") for path in sorted(built_in.glob("*.toml"))}
    problems = []
    for path in sorted(user.glob("*.toml")) if user.is_dir() else ():
        try:
            entries[path.stem] = read(path, "user")
        except InvalidInput as error:
            problems.append(f"{path}: {error.detail}")
    return Catalogue(entries, tuple(problems))


def read(path: Path, origin: Literal["built in", "user"]) -> RuntimeEntry:
    """Read one file; its name without `.toml` is the runtime's name. Raises `InvalidInput`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path.name} cannot be read as TOML: {error}", field=path.name) from error
    return parse(path.stem, table, origin)


def parse(name: str, table: object, origin: Literal["built in", "user"] = "user") -> RuntimeEntry:
    """Check one entry. Raises `InvalidInput` with the field that is wrong."""
    called = f"the runtime {name[:80]!r}"
    check_json(table, called)
    top = Fields(table, "", called)
    entry = RuntimeEntry(
        name=check_name(name, "name"),
        title=check_text(top.required("title"), "title", 200),
        protocol=_one_of(top, "protocol", PROTOCOLS),
        port=top.integer("port", 8000, 1, 65535),
        health_path=_path(top, "health_path"),
        predict_path=_path(top, "predict_path"),
        image=top.text("image", "") or None,
        command=tuple(_texts(top, "command")),
        env=check_env(top.mapping("env"), "env"),
        formats=tuple(_all_of(top, "formats", FORMATS)),
        engines=tuple(_all_of(top, "engines", ENGINES)),
        settings=_settings(top.table("settings"), top.mapping("settings")),
        homepage=top.text("homepage", "") or None,
        origin=origin,
        facts_path=top.matching("facts_path", URL_PATH, 'a path, for example "/v2"'),
        own_torch=top.boolean("own_torch", False),
    )
    top.done()
    _check_whole(entry, called)
    return entry


# --- reading an entry ------------------------------------------------------------------------------------------


def _path(table: Fields, key: str) -> str:
    table.required(key)
    return table.matching(key, URL_PATH, 'a path, for example "/health"') or ""


def _texts(table: Fields, key: str) -> list[str]:
    value = table.take(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(f"{key} is not a list of texts", field=key, hint=f'Write {key} = ["word", "word"].')
    return value


def _one_of(table: Fields, key: str, allowed: tuple[str, ...]) -> str:
    value = table.required(key)
    if value not in allowed:
        raise InvalidInput(
            f"{table.at(key)} is {value!r}"[:200], field=table.at(key), hint=f"Write one of: {', '.join(allowed)}."
        )
    return str(value)


def _all_of(table: Fields, key: str, allowed: tuple[str, ...]) -> list[str]:
    table.required(key)
    values = _texts(table, key)
    for value in values:
        if value not in allowed:
            raise InvalidInput(f"{key} holds {value!r}"[:200], field=key, hint=f"Known: {', '.join(allowed)}.")
    if not values:
        raise InvalidInput(f"{key} is empty", field=key, hint=f"Name at least one of: {', '.join(allowed)}.")
    return values


def _settings(tables: Fields, names: Mapping[str, Any]) -> tuple[Setting, ...]:
    settings = []
    for name in names:
        where = f"settings.{name[:80]}"
        if not _SETTING_NAME.fullmatch(name):
            raise InvalidInput(f"{name[:80]!r} is not a name of a setting", field=where, hint="Write a-z, 0-9 and '_'.")
        table = tables.table(name)
        kind: Any = _one_of(table, "type", get_args(SettingType))
        setting = Setting(
            name=name,
            type=kind,
            required=table.boolean("required", False),
            default=table.take("default"),
            help=table.text("help", ""),
        )
        table.done()
        if setting.default is not None and not _fits(setting.default, setting.type):
            raise InvalidInput(f"{where}.default is not of type {setting.type}", field=f"{where}.default")
        settings.append(setting)
    return tuple(settings)


def _check_whole(entry: RuntimeEntry, called: str) -> None:
    names = {setting.name for setting in entry.settings}
    if not entry.command and not entry.image and not names & {"command", "image"}:
        raise InvalidInput(f"{called} has neither image nor command", field="command", hint="Give at least one.")
    if "docker" in entry.engines and not entry.image and "image" not in names:
        raise InvalidInput(f"{called} has no image but names the engine docker", field="image")
    if "process" in entry.engines and not entry.command and "command" not in names:
        raise InvalidInput(f"{called} has no command but names the engine process", field="command")
    texts = [("image", entry.image or ""), ("health_path", entry.health_path), ("predict_path", entry.predict_path)]
    texts += [(f"command[{index}]", word) for index, word in enumerate(entry.command)]
    texts += [(f"env.{key}", value) for key, value in entry.env.items()]
    for where, text in texts:
        for match in _PLACEHOLDER.finditer(text):
            known = names if match[1] else {*FILLED_BY_ENGINE, *FILLED_HERE}
            if match[2] not in known:
                raise InvalidInput(
                    f"{where} of {called} holds {match[0]!r}, which nothing fills in",
                    field=where,
                    hint=f"Known: {', '.join(sorted(known)) or 'none'}.",
                )


# --- a version's settings --------------------------------------------------------------------------------------


def _fits(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _checked(setting: Setting, given: Mapping[str, Any], runtime: str) -> Any:
    where = f"settings.{setting.name}"
    if setting.name not in given:
        if setting.required:
            raise InvalidInput(
                f"the runtime {runtime!r} needs the setting {setting.name!r}",
                field=where,
                hint=f"Add it under [settings] of model.toml: {setting.help or setting.type}",
            )
        return setting.default
    value = given[setting.name]
    if not _fits(value, setting.type):
        raise InvalidInput(f"{where} is not of type {setting.type}", field=where, hint=setting.help or None)
    return _check_override(setting.name, value, where)


def _check_override(name: str, value: Any, where: str) -> Any:
    """A setting that replaces a part of the entry has to be what that part is."""
    if name == "port" and not 1 <= value <= 65535:
        raise InvalidInput(f"{where} is {value}", field=where, hint="Write a port from 1 to 65535.")
    if name == "command" and not (value and all(isinstance(word, str) and "\0" not in word for word in value)):
        raise InvalidInput(f"{where} is not a list of texts", field=where, hint='Write ["program", "argument"].')
    if name in ("health_path", "predict_path") and not URL_PATH.fullmatch(value):
        raise InvalidInput(f"{where} is not a path", field=where, hint='Write a path such as "/health".')
    if name == "image" and not re.fullmatch(r"[!-~]{1,512}", value):
        raise InvalidInput(f"{where} is not the name of an image", field=where, hint="For example registry/name:tag.")
    return value


# --- filling in ------------------------------------------------------------------------------------------------


def _facts(model: ModelConfig, engine: str) -> dict[str, str]:
    cpus = model.resources.cpus
    return {
        # Inside a container of its own a replica is reached over the bridge; a process only over loopback.
        "host": "0.0.0.0" if engine == "docker" else "127.0.0.1",  # noqa: S104
        "cpus": "" if cpus is None else f"{cpus:g}",
        "threads": str(max(1, math.floor(cpus))) if cpus else "1",
        "gpus": str(model.resources.gpus),
        "model": model.name,
        "version": model.version,
        "release": release(),
    }


def release() -> str:
    """The release of the agent, which names the image of the Python runtimes; see runtime_image.py."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0.1.0"


class _Filler:
    """Fills placeholders in: facts of one launch, and settings where it is given any."""

    def __init__(self, facts: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self._facts = facts
        self._settings = settings

    def text(self, text: str) -> str:
        return _PLACEHOLDER.sub(self._value, text)

    def words(self, words: Sequence[str]) -> tuple[str, ...]:
        filled: list[str] = []
        for word in words:
            alone = _SETTING_ALONE.fullmatch(word)
            value = self._settings.get(alone[1]) if alone else None
            if isinstance(value, list):
                filled.extend(_as_text(item) for item in value)
            elif not (alone and alone[1] in self._settings and value is None):
                filled.append(self.text(word))
        return tuple(filled)

    def _value(self, match: re.Match[str]) -> str:
        if not match[1]:
            return self._facts.get(match[2], match[0])
        return _as_text(self._settings[match[2]]) if match[2] in self._settings else match[0]


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
