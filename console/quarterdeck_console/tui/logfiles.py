"""Where log text goes when it leaves the screen: a file of its own, or the terminal's clipboard by OSC 52.

A file is new, for its owner only, and never takes the place of another. What can be said honestly about a clipboard
that never answers is said here too.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

OSC_52_MOST = 74_994
"""Bytes of base64 that terminals take, as xterm's and hterm's limit has it; k9s goes by the same."""

_MOST_NAMES = 1000
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def save(text: str, about: Sequence[str], now: datetime, folder: Path) -> Path:
    """Write a new file into `folder`, or into the temporary folder where that is not possible; its path.

    Raises `OSError` when neither takes it.
    """
    words = "-".join(_UNSAFE.sub("_", each) for each in about)[:80].strip(".-") or "logs"
    stem = f"{words}-{now:%Y%m%d-%H%M%S}"
    try:
        return _new(text, folder, stem)
    except OSError:
        return _new(text, Path(tempfile.gettempdir()), stem)


def _new(text: str, folder: Path, stem: str) -> Path:
    for number in range(1, _MOST_NAMES):
        place = folder.absolute() / (f"{stem}.log" if number == 1 else f"{stem}-{number}.log")
        try:
            # O_EXCL follows no link and takes the place of nothing.
            handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return place
    raise FileExistsError(f"{folder} has a thousand files called {stem} already")


def fits_clipboard(text: str) -> bool:
    """Whether a terminal can be expected to take this much."""
    return (len(text.encode("utf-8", "replace")) + 2) // 3 * 4 <= OSC_52_MOST


def clipboard(environ: Mapping[str, str]) -> tuple[bool, str]:
    """Whether OSC 52 has a chance of getting through, and what to tell of it."""
    if environ.get("TMUX"):
        return True, "sent by OSC 52; tmux passes it on only with: set -g set-clipboard on"
    if environ.get("STY"):
        return False, "GNU screen does not pass OSC 52 on"
    return True, "sent by OSC 52; a terminal may ignore that, o saves to a file"
