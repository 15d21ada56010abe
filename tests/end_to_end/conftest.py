"""Fixtures of the end-to-end tests: an agent on the process engine, and bundles to deploy on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.rig import Agent, agent


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Agent]:
    """An agent whose replicas are processes."""
    with agent(tmp_path / "host") as running:
        yield running
