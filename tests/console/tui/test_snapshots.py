"""The committed pictures against the screens of today: each is drawn anew and must look the same.

Compared is what a person sees: every text with its place and style, and every coloured ground. Names that Textual makes
up for one picture are left out.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import time
from collections.abc import Iterator

import pytest

from tests.console.tui.screenshots import FOLDER, SCENES, Scene, take

NAMES = ("fleet", "fleet-80x24", "rollback", "palette", "help", "gpus", "gpus-80x24")
CHOSEN = tuple(scene for scene in SCENES if scene.name in NAMES)

STYLE = re.compile(r"^\s*\.terminal-\d+-(r\d+) \{ (.*?) \}$", re.MULTILINE)
GROUND = re.compile(r'<rect fill="([^"]+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"')
TEXT = re.compile(r'<text class="terminal-\d+-(r\d+)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>')


@pytest.fixture(autouse=True)
def of_one_time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pictures tell times of day."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def seen(picture: str) -> list[str]:
    """What a picture shows, a line for each text and each ground, from top to bottom."""
    styles = dict(STYLE.findall(picture))
    texts = [(float(y), float(x), f"{text!r} {styles[style]}") for style, x, y, text in TEXT.findall(picture)]
    grounds = [(float(y), float(x), f"{fill} for {width}") for fill, x, y, width in GROUND.findall(picture)]
    return [f"{y:7.1f} {x:7.1f} {what}" for y, x, what in sorted(grounds) + sorted(texts)]


def test_the_chosen_pictures_are_scenes() -> None:
    assert {scene.name for scene in CHOSEN} == set(NAMES)


@pytest.mark.parametrize("scene", CHOSEN, ids=[scene.name for scene in CHOSEN])
def test_a_screen_looks_as_its_picture(scene: Scene) -> None:
    committed = seen((FOLDER / f"{scene.name}.svg").read_text(encoding="utf-8"))
    drawn = seen(asyncio.run(take(scene)))
    assert len(drawn) > 40, "a picture that can be read"
    changed = "\n".join(difflib.unified_diff(committed, drawn, "committed", "drawn", lineterm="", n=0))
    assert not changed, (
        f"screenshots/{scene.name}.svg is not what the screen shows: `make screenshots`, and look at it\n{changed}"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [("embed", "embad"), ("font-weight: bold }", "font-weight: 400 }"), ('fill="#', 'fill="#1')],
    ids=["another word", "another weight", "another ground"],
)
def test_a_picture_that_differs_is_told_apart(before: str, after: str) -> None:
    committed = (FOLDER / "fleet.svg").read_text(encoding="utf-8")
    assert before in committed
    start = committed.index(".terminal-")
    changed = committed[:start] + re.sub(re.escape(before), after, committed[start:])
    assert seen(changed) != seen(committed)


def test_names_made_up_for_one_picture_do_not_count() -> None:
    committed = (FOLDER / "fleet.svg").read_text(encoding="utf-8")
    assert seen(re.sub(r"terminal-\d+", "terminal-1", committed)) == seen(committed)
