"""What a bundle says about itself: `model.toml` and the list of files, checked to the last field, and their digest.

Everything here is pure and takes untrusted input: whatever comes in, the only error that goes out is `InvalidInput`,
with the field that is wrong and what to write instead. Nothing here opens a file of a bundle by a path it was sent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.fields import Fields, check_json, check_path, check_text
from quarterdeck_agent.protocol import Change, ManifestFile, Revision, Version

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
DIGEST = re.compile(r"[0-9a-f]{64}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
URL_PATH = re.compile(r"/[!-~]{0,1023}")
USER = re.compile(r"(?:[a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})(?::(?:[a-z_][a-z0-9_-]{0,31}|[0-9]{1,9}))?")

MIG_PROFILE = re.compile(r"(?:[1-9]c\.)?[1-9]g\.[1-9][0-9]{0,3}gb(?:[+-][a-z0-9.]{1,16}){0,3}", re.IGNORECASE)
GPU_MODEL = re.compile(r"(?! )[ -~]{1,64}(?<! )")
GPU_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

MAX_FILES = 100_000
MAX_LABELS = 16
MAX_SIZE = 1 << 50
MAX_CONFIG = 1 << 20
MAX_GOLDEN = 64
MAX_ENV = 256
METHODS = ("POST", "GET", "PUT")
HIDDEN = "(hidden)"

_SECRET_ENDINGS = ("TOKEN", "KEY", "KEYS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSWORDS", "CREDENTIALS")
_SECRET_WORDS = {"PASS", "PWD", "PASSPHRASE"}
_CREDENTIALS_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


@dataclass(frozen=True, slots=True)
class Health:
    """How to tell that a replica is ready: `path` overrides the runtime's; `start_timeout` in seconds."""

    path: str | None = None
    start_timeout: float = 600.0


@dataclass(frozen=True, slots=True)
class Golden:
    """A request whose answer is known: sent to a new revision before it gets any traffic.

    `path` is relative to the replica's root, `None` means the runtime's predict path. `body_file` and `expect_file`
    name JSON files of the bundle and stand in for `body` and `expect` (see `staging.with_golden`). Numbers may differ
    by `tolerance`; without `expect` only the status counts. `timeout` in seconds.
    """

    name: str
    path: str | None = None
    method: str = "POST"
    body: Any = None
    expect: Any = None
    tolerance: float = 1e-4
    status: int = 200
    timeout: float = 30.0
    body_file: str | None = None
    expect_file: str | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """`model.toml`, checked. `settings` are the runtime's own and are checked by the runtime."""

    name: str
    version: str
    runtime: str
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    health: Health = Health()
    golden: tuple[Golden, ...] = ()
    writable_root: bool = False
    user: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    card: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name}:{self.version}"


# --- model.toml ------------------------------------------------------------------------------------------------


def parse(config: object, files: Sequence[ManifestFile] | None = None) -> ModelConfig:
    """Check a parsed `model.toml`. With `files` (checked before) also that every file it names is among them."""
    check_json(config, "model.toml")
    top = Fields(config, "", "model.toml")
    container = top.table("container")
    model = ModelConfig(
        name=check_name(top.required("name"), "name"),
        version=check_version(top.required("version"), "version"),
        runtime=check_name(top.required("runtime"), "runtime"),
        settings=dict(top.mapping("settings")),
        env=check_env(top.mapping("env"), "env"),
        resources=_resources(top.table("resources")),
        health=_health(top.table("health")),
        golden=_golden_list(top.tables("golden", MAX_GOLDEN)),
        writable_root=container.boolean("writable_root", False),
        user=container.matching("user", USER, 'a name or number, for example "app" or "1000:1000"'),
        metadata=dict(top.mapping("metadata")),
        card=_path(top, "card"),
    )
    container.done()
    top.done()
    _check_size(config)
    if files is not None:
        _check_named_files(model, {file.path: file for file in files})
    return model


def _check_size(config: object) -> None:
    size = len(_encode(config))
    if size > MAX_CONFIG:
        raise InvalidInput(
            f"model.toml holds {size} bytes of values; {MAX_CONFIG} are allowed",
            field="model.toml",
            hint="Put large golden bodies into files of the bundle and name them with body_file and expect_file.",
        )


def _resources(table: Fields) -> Resources:
    """`[resources]`. Memory of a GPU, or an instance of one, asks for one GPU where `gpus` does not say more."""
    resources = Resources(
        gpus=table.integer("gpus", 1 if "vram" in table or "mig" in table else 0, 0, 64),
        vram=table.size("vram"),
        exclusive=table.boolean("exclusive", False),
        mig=table.matching("mig", MIG_PROFILE, 'a MIG profile, for example "1g.10gb"'),
        gpu_model=table.matching("gpu_model", GPU_MODEL, 'a part of the GPU\'s name, for example "H100"'),
        gpu_labels=_gpu_labels(table),
        cpus=table.optional_number("cpus", 0.01, 4096),
        memory=table.size("memory"),
        shm=table.size("shm"),
    )
    table.done()
    _check_gpus(resources, table)
    return resources


def _gpu_labels(table: Fields) -> tuple[str, ...]:
    labels = table.take("gpu_labels", [])
    good = isinstance(labels, list) and len(labels) <= MAX_LABELS
    if not good or not all(isinstance(label, str) and GPU_LABEL.fullmatch(label) for label in labels):
        raise InvalidInput(
            f"{table.at('gpu_labels')} is not a list of labels",
            field=table.at("gpu_labels"),
            hint='Write labels as the host\'s settings have them, for example ["fast", "team-a"].',
        )
    return tuple(dict.fromkeys(labels))


def _check_gpus(asks: Resources, table: Fields) -> None:
    """Refuse wishes about GPUs that contradict each other."""
    if not asks.gpus:
        for key in ("exclusive", "mig", "gpu_model", "gpu_labels"):
            if getattr(asks, key):
                raise InvalidInput(
                    f"{table.at(key)} is given, and no GPU is asked for",
                    field=table.at(key),
                    hint="Say how many with gpus = 1, or leave it out.",
                )
    if asks.mig is None:
        return
    if asks.vram is not None:
        raise InvalidInput(
            f"{table.at('vram')} and {table.at('mig')} are both given",
            field=table.at("vram"),
            hint="An instance is claimed whole: its profile says how much memory it has.",
        )
    if asks.gpus > 1:
        raise InvalidInput(
            f"{table.at('gpus')} asks for {asks.gpus} MIG instances",
            field=table.at("gpus"),
            hint="CUDA lets one process use one instance. Ask for a larger profile, or for more replicas.",
        )


def _health(table: Fields) -> Health:
    health = Health(
        path=table.matching("path", URL_PATH, 'a path on the replica, for example "/health"'),
        start_timeout=table.duration("start_timeout", 600.0, 1, 86_400),
    )
    table.done()
    return health


def _golden_list(tables: Iterable[Fields]) -> tuple[Golden, ...]:
    golden: list[Golden] = []
    for position, table in enumerate(tables, 1):
        one = _golden(table, f"golden {position}")
        if any(other.name == one.name for other in golden):
            raise InvalidInput(
                f"two golden requests are called {one.name!r}",
                field=table.at("name"),
                hint="Give each golden request a name of its own.",
            )
        golden.append(one)
    return tuple(golden)


def _golden(table: Fields, default_name: str) -> Golden:
    for inline, by_file in (("body", "body_file"), ("expect", "expect_file")):
        if inline in table and by_file in table:
            raise InvalidInput(
                f"{table.at(inline)} and {table.at(by_file)} are both given",
                field=table.at(by_file),
                hint=f"Keep one of {inline} and {by_file}.",
            )
    method = table.text("method", "POST")
    if method not in METHODS:
        raise InvalidInput(
            f"{method!r} is not a method of a golden request",
            field=table.at("method"),
            hint=f"Write one of {', '.join(METHODS)}.",
        )
    golden = Golden(
        name=check_text(table.text("name", default_name), table.at("name"), 128),
        path=table.matching("path", URL_PATH, 'a path on the replica, for example "/predict"'),
        method=method,
        body=table.take("body"),
        expect=table.take("expect"),
        tolerance=table.number("tolerance", 1e-4, 0, 1e12),
        status=table.integer("status", 200, 100, 599),
        timeout=table.duration("timeout", 30.0, 0.001, 3600),
        body_file=_path(table, "body_file"),
        expect_file=_path(table, "expect_file"),
    )
    table.done()
    return golden


def _path(table: Fields, key: str) -> str | None:
    return check_path(table.take(key), table.at(key)) if key in table else None


def _check_named_files(model: ModelConfig, files: Mapping[str, ManifestFile]) -> None:
    named = [("card", model.card)]
    for index, golden in enumerate(model.golden):
        named.append((f"golden[{index}].body_file", golden.body_file))
        named.append((f"golden[{index}].expect_file", golden.expect_file))
    for where, path in named:
        if path is not None and path not in files:
            raise InvalidInput(
                f"{where} names {path!r}, which is not among the files of the bundle",
                field=where,
                hint="Add the file to the bundle or correct the path (it is relative to model.toml).",
            )


# --- names -----------------------------------------------------------------------------------------------------


def check_name(value: object, where: str) -> str:
    """A name of a model, a deployment or a runtime. ASCII only, so no two names look alike."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise InvalidInput(
            f"{where}: {_short(value)} is not a name",
            field=where,
            hint="Write 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit.",
        )
    return value


def check_version(value: object, where: str) -> str:
    """The version part of a label."""
    if not isinstance(value, str) or not VERSION.fullmatch(value):
        raise InvalidInput(
            f"{where}: {_short(value)} is not a version",
            field=where,
            hint='Write it in quotes, for example "6.2.3": 1 to 63 of A-Z, a-z, 0-9 and ". _ + -".',
        )
    return value


def check_digest(value: object, where: str) -> str:
    """A SHA-256 in lower-case hex."""
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise InvalidInput(
            f"{where}: {_short(value)} is not a SHA-256 digest", field=where, hint="Write 64 of 0-9 and a-f."
        )
    return value


def check_env(env: Mapping[str, object], where: str) -> dict[str, str]:
    """Environment variables: sane names, text without NUL."""
    if len(env) > MAX_ENV:
        raise InvalidInput(f"{where} holds {len(env)} variables; {MAX_ENV} are allowed", field=where)
    for key, value in env.items():
        if not ENV_NAME.fullmatch(key):
            raise InvalidInput(
                f"{_short(key)} is not a name of an environment variable",
                field=where,
                hint="Write letters, digits and '_', not beginning with a digit.",
            )
        if not isinstance(value, str) or "\0" in value or len(value) > 32_768:
            raise InvalidInput(
                f"{where}.{key} is not a text of at most 32768 characters without NUL",
                field=f"{where}.{key}",
                hint='Write the value in quotes, for example "1".',
            )
    return {key: str(value) for key, value in env.items()}


def _short(value: object) -> str:
    return repr(value[:80]) if isinstance(value, str) else f"a value of type {type(value).__name__}"


# --- files -----------------------------------------------------------------------------------------------------


def check_files(files: Sequence[ManifestFile]) -> tuple[ManifestFile, ...]:
    """Check a list of files and return it sorted by path; no path twice and none that is also a folder of another."""
    if not files:
        raise InvalidInput("the bundle has no files", field="files", hint="A bundle holds at least its model.toml.")
    if len(files) > MAX_FILES:
        raise InvalidInput(f"the bundle has {len(files)} files; {MAX_FILES} are allowed", field="files")
    sizes: dict[str, int] = {}
    places: dict[str, int] = {}
    for index, file in enumerate(files):
        where = f"files[{index}]"
        check_path(file.path, f"{where}.path")
        check_digest(file.sha256, f"{where}.sha256")
        _check_file_size(file, sizes, where)
        if file.path in places:
            raise InvalidInput(f"{file.path!r} is listed twice", field=f"{where}.path", hint="List each file once.")
        places[file.path] = index
    _check_folders(places)
    return tuple(sorted(files, key=lambda file: file.path))


def _check_file_size(file: ManifestFile, sizes: dict[str, int], where: str) -> None:
    if isinstance(file.size, bool) or not isinstance(file.size, int) or not 0 <= file.size <= MAX_SIZE:
        raise InvalidInput(
            f"{where}.size is not a size in bytes", field=f"{where}.size", hint=f"Write a number from 0 to {MAX_SIZE}."
        )
    if sizes.setdefault(file.sha256, file.size) != file.size:
        raise InvalidInput(
            f"{file.path!r} has the digest of another file but not its size",
            field=f"{where}.size",
            hint="Read the bundle again: a file changed while it was listed.",
        )


def _check_folders(places: Mapping[str, int]) -> None:
    for path, index in places.items():
        parent = path.rpartition("/")[0]
        while parent:
            if parent in places:
                raise InvalidInput(
                    f"{parent!r} is a file and also the folder of {path!r}",
                    field=f"files[{index}].path",
                    hint="A path is either a file or a folder.",
                )
            parent = parent.rpartition("/")[0]


def canonical(files: Sequence[ManifestFile], config: Mapping[str, Any]) -> bytes:
    """The one byte sequence that stands for a version: sorted, compact JSON of the files and of `model.toml`."""
    listed = [
        {"path": file.path, "size": file.size, "sha256": file.sha256}
        for file in sorted(files, key=lambda file: file.path)
    ]
    return _encode({"manifest": 1, "files": listed, "config": config})


def version_id(manifest: bytes) -> str:
    """The id of the version with this canonical manifest."""
    return hashlib.sha256(manifest).hexdigest()


def _encode(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


# --- what changed ----------------------------------------------------------------------------------------------


def diff(
    old: ModelConfig | None,
    new: ModelConfig,
    old_files: Iterable[ManifestFile] = (),
    new_files: Iterable[ManifestFile] = (),
) -> tuple[Change, ...]:
    """What differs from `old` to `new`, field by field and file by file, with secrets hidden."""
    before = {**(_flat(_as_table(old)) if old else {}), **_listed(old_files)}
    after = {**_flat(_as_table(new)), **_listed(new_files)}
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            changes.append(Change(key, shown(key, before.get(key)), shown(key, after.get(key))))
    return tuple(changes)


def is_secret(key: str) -> bool:
    """Whether a key looks like the name of a secret: one of its words ends as secrets' names do."""
    if key.startswith("files."):
        return False
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key.rpartition(".")[2])
    parts = [word.upper() for word in re.split(r"[^A-Za-z0-9]+", words)]
    return any(word.endswith(_SECRET_ENDINGS) or word in _SECRET_WORDS for word in parts)


def shown(key: str, value: str | None) -> str | None:
    """The value as people may see it."""
    if value is None:
        return None
    return HIDDEN if is_secret(key) or _CREDENTIALS_IN_URL.search(value) else value


def public(revision: Revision) -> Revision:
    """A revision as it may leave the agent: the values of secrets in its environment are hidden."""
    env = _hidden(revision.spec.env)
    return revision if env == revision.spec.env else replace(revision, spec=replace(revision.spec, env=env))


def public_version(version: Version) -> Version:
    """A version as it may leave the agent: the values of secrets in its `[env]` are hidden."""
    env = version.config.get("env", {})
    hidden = _hidden(env)
    return version if env == hidden else replace(version, config={**version.config, "env": hidden})


def _hidden(env: Mapping[str, str]) -> dict[str, str]:
    return {key: HIDDEN if shown(key, value) == HIDDEN else value for key, value in env.items()}


def _as_table(model: ModelConfig) -> dict[str, Any]:
    resources, health = model.resources, model.health
    return {
        "version": model.label,
        "runtime": model.runtime,
        "settings": model.settings,
        "env": model.env,
        "resources": _resources_table(resources),
        "health": {"path": health.path, "start_timeout": health.start_timeout},
        "golden": {golden.name: _golden_table(golden) for golden in model.golden},
        "container": {"writable_root": model.writable_root, "user": model.user},
        "metadata": model.metadata,
        "card": model.card,
    }


def _resources_table(asks: Resources) -> dict[str, Any]:
    shown: dict[str, Any] = {key: getattr(asks, key) for key in ("gpus", "mig", "gpu_model", "cpus")}
    sizes = {key: _as_size(getattr(asks, key)) for key in ("vram", "memory", "shm")}
    return {**shown, **sizes, "exclusive": asks.exclusive or None, "gpu_labels": ", ".join(asks.gpu_labels) or None}


def _as_size(size: int | None) -> str | None:
    """A size in the largest unit of which it is a whole number: no two sizes look alike."""
    if size is None:
        return None
    units = ((30, "GiB"), (20, "MiB"), (10, "KiB"))
    return next((f"{size >> bits} {unit}" for bits, unit in units if size and size % (1 << bits) == 0), f"{size} bytes")


def _golden_table(golden: Golden) -> dict[str, Any]:
    keys = ("path", "method", "tolerance", "status", "timeout", "body_file", "expect_file")
    table: dict[str, Any] = {key: getattr(golden, key) for key in keys}
    # Bodies can be long: their digest tells that they changed, without pages of numbers.
    for key in ("body", "expect"):
        value = getattr(golden, key)
        table[key] = None if value is None else "sha256:" + hashlib.sha256(_encode(value)).hexdigest()[:12]
    return table


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and (value or not prefix):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    if value is None or value == {}:
        return {}
    return {prefix: value if isinstance(value, str) else _encode(value).decode()}


def _listed(files: Iterable[ManifestFile]) -> dict[str, str]:
    return {f"files.{file.path}": f"{file.sha256[:12]} ({file.size} bytes)" for file in files}
