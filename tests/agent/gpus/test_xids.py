"""The catalogue of Xids is complete in form, has the numbers that matter, and gives unknown ones to a person."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from quarterdeck_agent.gpus.xids import Action, load_xids

AT = datetime(2026, 11, 23, 13, 58, tzinfo=UTC)


def test_every_entry_has_a_meaning_and_a_known_action() -> None:
    catalogue = load_xids()
    assert len(catalogue.known) > 100
    assert {xid.action for xid in catalogue.known.values()} == set(Action)
    for code, xid in catalogue.known.items():
        assert 1 <= code <= 999
        assert xid.meaning and xid.meaning == xid.meaning.strip() and not xid.meaning.endswith(".")
        assert len(xid.meaning) <= 80 and xid.meaning.isprintable()


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (13, Action.RESTART),
        (31, Action.RESTART),
        (43, Action.IGNORE),
        (45, Action.IGNORE),
        (48, Action.DRAIN),
        (63, Action.IGNORE),
        (64, Action.DRAIN),
        (74, Action.DRAIN),
        (79, Action.REBOOT),
        (94, Action.RESTART),
        (95, Action.RESET),
        (119, Action.RESET),
        (154, Action.IGNORE),
    ],
)
def test_the_best_known_numbers_ask_for_what_nvidia_recommends(code: int, action: Action) -> None:
    assert load_xids().known[code].action is action


def test_an_unknown_number_is_for_a_person_to_look_at() -> None:
    event = load_xids().event(4711, AT)
    assert (event.at, event.code, event.action) == (AT, 4711, "contact support")
    assert "not in the catalogue" in event.meaning


def test_an_entry_without_a_known_action_is_refused(tmp_path: Path) -> None:
    (tmp_path / "xids.toml").write_text('[xids]\n1 = { action = "pray", meaning = "x" }\n')
    with pytest.raises(ValueError, match="pray"):
        load_xids(tmp_path / "xids.toml")
