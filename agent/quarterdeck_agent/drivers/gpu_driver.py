"""Tells one load of NVIDIA's kernel module from the next, by what the kernel shows of it. Never touches the driver."""

from __future__ import annotations

from pathlib import Path

MODULE = Path("/sys/module/nvidia")


def load_id(module: Path = MODULE) -> str:
    """A word that is another one after the module was loaded anew; empty where none is loaded or it cannot be told."""
    try:
        return str(module.stat().st_ino)  # sysfs gives each load a number of its own
    except OSError:
        return ""
