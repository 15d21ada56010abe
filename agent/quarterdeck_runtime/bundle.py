"""What the runtime reads of a bundle's `model.toml`: which model, how to load it, how requests are batched.

The agent has checked the file already; what is checked again here is what the runtime itself relies on.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quarterdeck_runtime.errors import BundleError

MAX_BODY = 100 << 20


@dataclass(frozen=True, slots=True)
class Declared:
    """A tensor that requests must hold: `shape` with -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle as the runtime needs it. `max_wait` in seconds, `max_body` in bytes."""

    folder: Path
    name: str
    version: str
    runtime: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[Declared, ...] = ()
    batch: int = 1
    max_wait: float = 0.005
    max_body: int = MAX_BODY
    device: str | None = None


def read(folder: Path) -> Bundle:
    """Read `folder/model.toml`; raises `BundleError` with the field that is wrong."""
    path = folder / "model.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error
    settings = _take(table, "settings", dict, {})
    return Bundle(
        folder=folder,
        name=_take(table, "name", str, None),
        version=_take(table, "version", str, None),
        runtime=_take(table, "runtime", str, None),
        settings=settings,
        inputs=tuple(_declared(item, index) for index, item in enumerate(_take(settings, "inputs", list, []))),
        batch=_at_least(1, _take(settings, "batch", int, 1), "settings.batch"),
        max_wait=_at_least(0, _take(settings, "max_wait_ms", (int, float), 5), "settings.max_wait_ms") / 1000,
        max_body=_at_least(1, _take(settings, "max_body", int, MAX_BODY), "settings.max_body"),
        device=_take(settings, "device", str, "") or None,
    )


def _take(table: dict[str, Any], key: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"model.toml: {key} is missing or of the wrong type", field=key)
    return value


def _at_least(low: int, value: Any, where: str) -> Any:
    if value < low:
        raise BundleError(f"model.toml: {where} is {value}, the least is {low}", field=where)
    return value


def _declared(item: object, index: int) -> Declared:
    where = f"settings.inputs[{index}]"
    if not isinstance(item, dict) or not {"name", "datatype", "shape"} <= item.keys():
        raise BundleError(f"model.toml: {where} is not a table with name, datatype and shape", field=where)
    shape = item["shape"]
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= -1 for size in shape):
        raise BundleError(f"model.toml: {where}.shape is not a list of sizes", field=f"{where}.shape")
    return Declared(str(item["name"]), str(item["datatype"]), tuple(shape))
