"""Pushes the trivial model in versions that behave or misbehave as a test asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.end_to_end.rig import Agent
from tests.models import trivial_bundle

QUICK = ("--dwell", "0.2")


def push(host: Agent, folder: Path, version: str, name: str = "toy", **options: Any) -> str:
    """Push one version and give its label."""
    bundle = trivial_bundle(folder / f"{name}-{version}", name, version, **options)
    host.must("push", str(bundle))
    return f"{name}:{version}"


def golden(answer: Any) -> list[dict[str, Any]]:
    """One golden request whose answer must be this."""
    return [{"name": "first", "body": {"x": 1}, "expect": {"answer": answer}}]


def deployed(host: Agent, folder: Path, version: str = "1", *words: str, **options: Any) -> None:
    """Push a version and deploy it, with a short dwell."""
    host.must("deploy", push(host, folder, version, **options), *QUICK, *words)
