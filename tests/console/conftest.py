"""Fixtures of the console's tests: one simulated agent with its fleet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.fake_agent import FakeAgent
from tests.console.running import fleet_of


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with FakeAgent(tmp_path / "box") as running:
        yield running


@pytest.fixture
def fleet(tmp_path: Path, agent: FakeAgent) -> Path:
    return fleet_of(tmp_path, agent)
