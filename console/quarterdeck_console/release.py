"""The release this code belongs to. A constant, as reading package metadata costs 20 ms at every start."""

from __future__ import annotations

VERSION = "0.1.0"
