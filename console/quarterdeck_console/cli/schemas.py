"""Makes the shipped JSON Schemas (2020-12) of what `--json` prints from the wire's own classes.

Run `python -m quarterdeck_console.cli.schemas` to write them anew; a test fails when they are stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from quarterdeck_agent import protocol as p

FOLDER = Path(__file__).parents[1] / "schemas"
PREFIX = "urn:quarterdeck:schema:v1:"

LISTS: dict[str, type] = {
    "DeploymentList": p.DeploymentStatus,
    "DeploymentDetailList": p.DeploymentDetail,
    "RevisionList": p.Revision,
    "VersionList": p.Version,
    "OperationList": p.Operation,
    "PreviewList": p.Preview,
    "RuntimeList": p.Runtime,
    "CheckList": p.Check,
}
EVENTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "DeploymentEvent": (p.DeploymentStatus, ("snapshot", "changed")),
    "OperationEvent": (p.Operation, ("snapshot", "changed")),
    "LogLine": (p.LogLine, ("line", "marker")),
}
TEXT: dict[str, Any] = {"type": "string"}
MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
PROBLEM = {
    "title": "Problem",
    "type": "object",
    "required": ["code", "detail", "host", "field", "hint", "operation", "exit_code"],
    "properties": {
        "code": {"type": "string", "description": "Stable; programs may match on it."},
        "detail": TEXT,
        "host": MAYBE_TEXT,
        "field": MAYBE_TEXT,
        "hint": MAYBE_TEXT,
        "operation": MAYBE_TEXT,
        "exit_code": {"type": "integer", "enum": [1, 2, 3, 4, 5, 7, 8, 130]},
    },
}
_HOST_FIELDS = {"host": TEXT, "url": TEXT, "protected": {"type": "boolean"}, "colour": MAYBE_TEXT}
ITEMS: dict[str, dict[str, Any]] = {
    "ConsoleVersion": {"version": TEXT, "api_versions": {"type": "array", "items": TEXT}, "python": TEXT},
    "Prediction": {
        "host": TEXT, "deployment": TEXT, "url": TEXT, "status": {"type": "integer"}, "seconds": {"type": "number"},
        "answer": {},
    },
    "Host": _HOST_FIELDS,
    "Serving": {"url": TEXT, "read_only": {"type": "boolean"}},
    "Completion": {"shell": TEXT, "script": TEXT},
    "Schema": {},
}  # fmt: skip


def documents() -> dict[str, dict[str, Any]]:
    """Every kind's schema by its name."""
    made = {kind: _envelope(kind, {"items": _array(_of_host(type_))}) for kind, type_ in LISTS.items()}
    made |= {kind: _envelope(kind, {"item": _object(fields)}) for kind, fields in ITEMS.items()}
    made["HostList"] = _envelope("HostList", {"items": _array(_host())})
    made["GpuList"] = _envelope("GpuList", {"items": _array(_gpu())})
    made["GpuSeriesList"] = _envelope("GpuSeriesList", {"items": _array(_of_gpu(p.Series, {"uuid": TEXT}))})
    made["SchemaList"] = _envelope("SchemaList", {"items": _array(_object({"kind": TEXT}))})
    made["Error"] = _envelope("Error", {"error": _ref("Problem")})
    made |= {kind: _event(kind, _of_host(type_), words) for kind, (type_, words) in EVENTS.items()}
    made["GpuEvent"] = _event("GpuEvent", _gpu(), ("snapshot", "changed"))
    return {kind: _with_definitions(kind, document) for kind, document in made.items()}


def _envelope(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    fields = {"api_version": {"const": "quarterdeck/v1"}, "kind": {"const": kind}, **payload}
    return _object({**fields, "errors": _array(_ref("Problem"))})


def _event(kind: str, item: dict[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    """A line of a stream: a thing, or word of its host (`heartbeat`, `removed`, `lost` with its error)."""
    fields = {"api_version": {"const": "quarterdeck/v1"}, "kind": {"const": kind}}
    thing = _object({**fields, "type": {"enum": list(words)}, "item": item})
    about = {**fields, "type": {"enum": ["heartbeat", "removed", "lost"]}, "item": _object({"host": TEXT})}
    other = _object(about)
    other["properties"]["error"] = _ref("Problem")
    return {"oneOf": [thing, other]}


def _maybe(type_: type) -> dict[str, Any]:
    return {"anyOf": [_ref(type_.__name__), {"type": "null"}]}


def _of_gpu(type_: type, fields: dict[str, Any]) -> dict[str, Any]:
    """A thing of one GPU: `gpu` is what people call it, its index, `0.2` for instance 2 of GPU 0."""
    return {"allOf": [_ref(type_.__name__), _object({"host": TEXT, "gpu": TEXT, **fields})]}


def _gpu() -> dict[str, Any]:
    return _of_gpu(p.Gpu, {"facts": _maybe(p.GpuFacts), "use": _maybe(p.GpuUse)})


def _host() -> dict[str, Any]:
    return _object(
        {
            **_HOST_FIELDS,
            "reachable": {"type": "boolean"},
            "error": {"anyOf": [_ref("Problem"), {"type": "null"}]},
            "info": _maybe(p.HostInfo),
            "gauges": _maybe(p.HostGauges),
            "parts": _array(_ref("Part")),
            "gpus": _array(_ref("Gpu")),
        }
    )


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": dict(fields)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _of_host(type_: type) -> dict[str, Any]:
    return {"allOf": [_ref(type_.__name__), _object({"host": TEXT})]}


def _with_definitions(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    known = _definitions()
    wanted: dict[str, Any] = {}
    waiting = _names(document)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted[name] = known[name]
            waiting |= _names(known[name])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{PREFIX}{kind}", "title": kind}
    return {**head, **document, "$defs": dict(sorted(wanted.items()))}


def _definitions() -> dict[str, Any]:
    types = [*LISTS.values(), *(type_ for type_, _ in EVENTS.values()), p.HostStatus, p.Series]
    _, found = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    for name, schema in found.items():
        # A newer agent may know further values; whoever validates must not break on them.
        if issubclass(getattr(p, name), p.OpenEnum):
            found[name] = {"title": name, "type": "string", "examples": schema["enum"]}
    return {**found, "Problem": PROBLEM}


def _names(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_names, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {str(schema["$ref"]).rpartition("/")[2]} if "$ref" in schema else set()
    return own.union(*(_names(value) for value in schema.values()))


def text(document: dict[str, Any]) -> str:
    """A schema as it lies in its file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write() -> None:
    """Write every schema, and remove those of kinds that are no more."""
    FOLDER.mkdir(exist_ok=True)
    made = documents()
    for path in FOLDER.glob("*.json"):
        if path.stem not in made:
            path.unlink()
    for kind, document in made.items():
        (FOLDER / f"{kind}.json").write_text(text(document), encoding="utf-8")


if __name__ == "__main__":
    write()
