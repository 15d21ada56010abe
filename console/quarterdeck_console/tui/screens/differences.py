"""Pure: what differs between two versions or two specs, field by field and file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quarterdeck_agent.protocol import Change, Revision, Spec, Version
from quarterdeck_console import views
from quarterdeck_console.views import short

_OWN = frozenset({"version", "label"})
"""Fields of a spec that say which version it is: told as one."""


def versions(old: Version, new: Version) -> tuple[Change, ...]:
    """Runtime, configuration and files."""
    found = [Change("version", old.label, new.label)] if old.label != new.label else []
    if old.label == new.label and old.id != new.id:
        found.append(Change("bytes", short(old.id), short(new.id)))
    if old.runtime != new.runtime:
        found.append(Change("runtime", old.runtime, new.runtime))
    found += _mappings(_flat(_config(old)), _flat(_config(new)), "")
    return (*found, *_files(old, new))


def specs(old: Spec, new: Spec) -> tuple[Change, ...]:
    """How a deployment is wanted."""
    found = [Change("version", old.label, new.label)] if old.version != new.version else []
    before, after = ({k: v for k, v in asdict(each).items() if k not in _OWN} for each in (old, new))
    return (*found, *_mappings(_flat(before), _flat(after), ""))


def revisions(old: Revision, new: Revision, known: Mapping[str, Version]) -> tuple[Change, ...]:
    """Specs, and what is in their versions as far as the host still has them."""
    found = specs(old.spec, new.spec)
    before, after = known.get(old.spec.version), known.get(new.spec.version)
    if before is None or after is None or before.id == after.id:
        return found
    return (*found, *(each for each in versions(before, after) if each.field != "version"))


def _config(version: Version) -> dict[str, Any]:
    return {key: value for key, value in version.config.items() if key not in ("name", "version", "runtime")}


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested tables as `settings.batch`, lists as `golden.0.name`."""
    if isinstance(value, Mapping) and value:
        pairs = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        pairs = [(str(index), each) for index, each in enumerate(value)]
    else:
        return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}
    found: dict[str, str] = {}
    for key, each in pairs:
        found.update(_flat(each, f"{prefix}.{key}" if prefix else key))
    return found


def _mappings(old: Mapping[str, str], new: Mapping[str, str], prefix: str) -> list[Change]:
    keys = [key for key in dict.fromkeys((*old, *new)) if key]
    return [Change(prefix + key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _files(old: Version, new: Version) -> list[Change]:
    before, after = ({file.path: file for file in each.files} for each in (old, new))
    found = []
    for path in sorted({*before, *after}):
        left, right = before.get(path), after.get(path)
        if left is None or right is None or left.sha256 != right.sha256:
            told = [None if file is None else f"{views.size(file.size)} {file.sha256[:8]}" for file in (left, right)]
            found.append(Change(f"file {path}", *told))
    return found
