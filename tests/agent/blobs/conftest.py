"""A fresh blob store for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from quarterdeck_agent.blobs import Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "data", reserve=0, share=0)
