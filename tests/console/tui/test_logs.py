"""The logs screen from the keyboard: what each key does, and what outlasts what."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from textual.events import MouseScrollDown, MouseScrollUp

from quarterdeck_console.errors import Unreachable
from quarterdeck_console.tui import logfiles
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.messages import LogEntry
from quarterdeck_console.tui.screens.logs import HEAD
from quarterdeck_console.tui.widgets.log_rows import MOST_ROWS
from tests.console.tui.driving import Driver, drive
from tests.console.tui.logs_driving import CHAT, EMBED, HOSTILE, body, entry, numbered, opened, say, simulation, wishes


async def asks_anew(d: Driver, key: str) -> None:
    """Press a key that makes a new stream."""
    before = len(wishes(d))
    await d.press(key)
    await d.until(lambda: len(wishes(d)) > before, f"{key} asked anew")


def test_lines_of_many_are_merged_by_time_with_a_prefix_that_tells_them_apart() -> None:
    async def story(d: Driver) -> None:
        await opened(d, EMBED, CHAT)
        assert body(d)[:3] == [
            "gpu-a2 embed      first",
            "gpu-a1 llama-chat second",
            "gpu-a2 embed      third",
        ]
        say(d, entry(2.5, "late", CHAT))
        await d.shows("late")
        assert [line.split()[-1] for line in body(d)[:4]] == ["first", "second", "late", "third"]

    drive(story, simulation=simulation(entry(1, "first"), entry(3, "third"), entry(2, "second", CHAT)))


def test_replicas_and_revisions_are_told_apart_only_where_there_are_several() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert body(d)[0] == "alone"
        say(d, entry(2, "another revision", revision=9))
        await d.shows("r9 another revision")
        assert body(d)[0] == "r8 alone"
        say(d, entry(3, "another replica", revision=9, replica="embed-9-2"))
        await d.shows("r9/2 another replica")
        assert "r9/1 another revision" in d.text

    drive(story, simulation=simulation(entry(1, "alone")))


def test_it_follows_until_paused_and_says_how_many_lines_came_meanwhile() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert body(d)[-1] == "line 99."
        await d.press("s")
        await d.shows("‖ paused")
        say(d, *numbered(5, first=100))
        await d.shows("paused +5")
        assert body(d)[-1] == "line 99."
        await d.press("s")
        await d.shows("● following")
        assert body(d)[-1] == "line 104."

    drive(story, simulation=simulation(*numbered(100)))


@pytest.mark.parametrize("key", ["up", "k", "pageup", "g", "home"])
def test_moving_up_pauses_and_the_end_follows_again(key: str) -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press(key)
        shown = body(d)
        say(d, *numbered(50, first=100))
        await d.shows("paused +50")
        assert body(d) == shown
        await d.press("G")
        await d.shows("● following")
        assert body(d)[-1] == "line 149."

    drive(story, simulation=simulation(*numbered(100)))


def test_the_cursor_goes_line_by_line_and_page_by_page_both_ways() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.press("g")
        assert view.cursor_text() == "line 0."
        await d.press("j", "j", "down", "k", "up")
        assert view.cursor_text() == "line 1."
        await d.press("pagedown")
        assert view.cursor == view.size.height
        await d.press("pageup")
        assert view.cursor_text() == "line 1."
        await d.press("end")
        assert view.cursor_text() == "line 99."

    drive(story, simulation=simulation(*numbered(100)))


def test_long_lines_wrap_or_are_moved_sideways() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "the end" not in d.text
        await d.press("w")
        assert "the end" in d.text
        assert len([line for line in body(d) if line]) == 3
        await d.press("w")
        assert "the end" not in d.text
        await d.press(*["l"] * 10)
        assert "the end" in d.text
        await d.press(*["h"] * 10)
        assert body(d)[0].startswith("xxx")

    drive(story, simulation=simulation(entry(1, "x" * 150 + " the end"), entry(2, "short")), size=(80, 24))


def test_times_of_day_come_and_go() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("t")
        assert body(d)[0].endswith(" first")
        assert body(d)[0][2] == ":"
        assert len(body(d)[0]) == len("13:53:22.000 first")
        await d.press("t")
        assert body(d)[0] == "first"

    drive(story, simulation=simulation(entry(0, "first")))


@pytest.mark.parametrize(
    ("typed", "shown"),
    [("error", ["an ERROR here", "no error"]), ("!error", ["all well"]), ("~aeh", ["an ERROR here"])],
)
def test_a_filter_narrows_to_lines_with_without_and_like(typed: str, shown: list[str]) -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("slash")
        await d.type(typed)
        await d.press("enter")
        assert [line for line in body(d) if line] == shown
        assert f"/{typed} {len(shown)}" in d.text
        await d.press("escape")
        assert len([line for line in body(d) if line]) == 3

    drive(story, simulation=simulation(entry(1, "an ERROR here"), entry(2, "all well"), entry(3, "no error")))


def test_filter_and_search_outlast_every_toggle_a_cut_and_a_new_stream() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("slash", *"yes", "enter", "f", *"two", "enter")

        def kept() -> bool:
            lines = [line for line in body(d) if line and "──" not in line]
            return bool(lines) and all("yes" in line for line in lines) and "/yes" in d.text and "find two" in d.text

        for key in ("w", "t", "s", "s", "w", "t", "m"):
            await d.press(key)
            assert kept(), key
        say(d, LogEntry(EMBED, note="embed ended the stream", cut=True), entry(9, "no again"), entry(10, "yes again"))
        await d.shows("yes again")
        assert kept()
        for key in ("3", "p", "p", "0"):
            await asks_anew(d, key)
            await d.shows("yes one")
            assert kept(), key

    entries = (entry(1, "yes one"), entry(2, "no two"), entry(3, "yes two"))
    drive(story, simulation=simulation(*entries))


def test_search_highlights_and_goes_to_the_next_and_the_one_before_all_around() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.press("f", *"line 1", "enter")
        assert view.cursor_text() == "line 19."
        assert "find line 1 11/11" in d.text
        assert not view.following
        await d.press("N")
        assert view.cursor_text() == "line 18."
        await d.press("n", "n")
        assert view.cursor_text() == "line 1."
        assert "went on from the first line" in d.text
        found = view.get_component_rich_style("log--found").bgcolor
        strip = view.render_line(view.cursor - view.scroll_offset.y)
        assert [segment.text for segment in strip if segment.style and segment.style.bgcolor == found] == ["line 1"]

    drive(story, simulation=simulation(*numbered(20)))


def test_a_hit_on_the_last_line_pauses_and_stays_paused_when_the_search_line_goes() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("f", *"line 99", "enter")
        await d.until(lambda: "‖ paused" in d.text and "n previous" not in d.text, "the search line is gone")
        say(d, *numbered(5, first=100))
        await d.shows("paused +5")

    drive(story, simulation=simulation(*numbered(100)))


def test_a_search_that_finds_nothing_says_so_and_n_without_one_asks_for_it() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("n", *"absent", "enter")
        assert "no line has absent" in d.text
        await d.press("escape")
        assert "find" not in d.line_with("following")
        await d.press("escape")
        await d.until(lambda: "logs of" not in d.text, "we are back at the fleet")

    drive(story, simulation=simulation(*numbered(3)))


def test_a_hit_beyond_the_edge_is_brought_into_view() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("f", *"needle", "enter")
        assert "needle" in body(d)[0]

    drive(story, simulation=simulation(entry(1, "x" * 300 + "needle" + "y" * 300)), size=(80, 24))


def test_the_digits_ask_for_as_much_as_in_k9s() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        for key in "0123456":
            await asks_anew(d, key)
        asked = [(wish.since, wish.tail, wish.follow) for wish in wishes(d)[1:]]
        assert asked == [
            (None, 1000, True), (None, None, False), ("2026-11-23T14:02:22Z", None, True),
            ("2026-11-23T13:58:22Z", None, True), ("2026-11-23T13:48:22Z", None, True),
            ("2026-11-23T13:33:22Z", None, True), ("2026-11-23T13:03:22Z", None, True),
        ]  # fmt: skip
        assert "--since 1h" in d.view.command()

    drive(story, simulation=simulation(*numbered(3)))


def test_the_beginning_ends_after_enough_lines() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.press("1")
        await d.shows("■ ended")
        assert len(view.rows.every) == HEAD + 1
        assert "end here; 0 shows the newest" in view.rows.every[-1].text

    drive(story, simulation=simulation(*numbered(HEAD + 100)))


def test_the_run_before_and_other_revisions_are_asked_for() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        for keys in ("p", "p", "[", "[", "]", "]"):
            await asks_anew(d, {"[": "left_square_bracket", "]": "right_square_bracket"}.get(keys, keys))
        asked = [(wish.previous, wish.follow, wish.revision) for wish in wishes(d)[1:]]
        assert asked == [
            (True, False, None), (False, True, None), (False, True, 8), (False, True, 7), (False, True, 8),
            (False, True, None),
        ]  # fmt: skip

    drive(story, simulation=simulation(*numbered(3)))


def test_revisions_of_several_deployments_are_not_compared() -> None:
    async def story(d: Driver) -> None:
        await opened(d, EMBED, CHAT)
        await d.press("left_square_bracket")
        await d.shows("open the logs of one")
        assert len(wishes(d)) == 1

    drive(story, simulation=simulation(*numbered(3)))


def test_a_mark_is_a_line_of_its_own_and_clearing_leaves_the_stream() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("m")
        assert body(d)[3].startswith("── mark at ")
        say(d, entry(50, "after it"))
        await d.shows("after it")
        assert body(d)[4] == "after it"
        await d.press("C")
        assert body(d)[0] == " no lines yet"
        say(d, entry(60, "goes on"))
        await d.shows("goes on")
        assert body(d)[:2] == ["goes on", ""]
        assert len(wishes(d)) == 1

    drive(story, simulation=simulation(*numbered(3)))


def test_a_cut_is_drawn_and_so_is_the_return() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        say(d, LogEntry(EMBED, note="gpu-a2 ended the stream; following goes on when it is back", cut=True))
        await d.shows("○ gpu-a2 cut")
        assert "── embed on gpu-a2: gpu-a2 ended the stream" in body(d)[3]
        say(d, entry(70, "here again"))
        await d.shows("here again")
        assert body(d)[4] == "here again"
        assert "back after" in body(d)[5]
        assert "cut" not in d.line_with("following")

    drive(story, simulation=simulation(*numbered(3)))


def test_a_host_that_is_there_again_is_not_called_cut_for_ever() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        say(d, LogEntry(EMBED, note="gpu-a2 ended the stream", cut=True))
        await d.shows("○ gpu-a2 cut")
        for _ in range(30):
            d.simulation.tick()
        await d.until(lambda: "gpu-a2 cut" not in d.text, "its return is believed")

    drive(story, simulation=simulation(*numbered(3)))


def test_lost_lines_and_errors_are_drawn_whatever_the_filter() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("slash", *"nothing", "enter")
        say(
            d,
            entry(70, "reading was too slow", dropped=17),
            LogEntry(CHAT, error=Unreachable("no answer", hint="look")),
        )
        await d.shows("no answer (look)")
        assert "embed on gpu-a2: reading was too slow" in d.text
        assert "line 1." not in d.text

    drive(story, simulation=simulation(*numbered(3)))


def test_the_number_of_lines_is_bounded_and_the_view_stays_where_it_is() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        say(d, *numbered(8000, first=MOST_ROWS - 7500))
        await d.until(lambda: len(view.rows.every) == MOST_ROWS, "it is full")
        assert body(d)[-1] == f"line {MOST_ROWS + 499}."
        await d.press("pageup", "pageup")
        shown, cursor = body(d), view.cursor_text()
        say(d, *numbered(500, first=MOST_ROWS + 500))
        await d.shows("paused +500")
        assert len(view.rows.every) == len(view.laid) == MOST_ROWS
        assert (body(d), view.cursor_text()) == (shown, cursor)

    drive(story, simulation=simulation(*numbered(MOST_ROWS - 7500)))


def test_a_stream_that_was_replaced_says_nothing_any_more() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        (wish,) = wishes(d)
        await d.press("3")
        await d.until(lambda: len(wishes(d)) == 2 and "line 2." in d.text, "asked anew")
        d.view.post_message(m.LogsCame((entry(90, "stale"),), wish=wish))
        say(d, entry(91, "fresh"))
        await d.shows("fresh")
        assert "stale" not in d.text

    drive(story, simulation=simulation(*numbered(3)))


def test_leaving_ends_the_streams() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert d.app.session._streams
        await d.press("escape")
        await d.until(lambda: not d.app.session._streams, "no stream is left")

    drive(story, simulation=simulation(*numbered(3)))


# --- taking lines along ----------------------------------------------------------------------------------------------


def test_copying_takes_the_line_what_is_marked_or_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.delenv("STY", raising=False)

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("c")
        assert d.app.clipboard == "line 99."
        assert "1 line sent by OSC 52; a terminal may ignore that, o saves to a file" in d.text
        await d.press("v")
        assert d.app.clipboard == "\n".join(body(d))
        await d.press("k", "k", "k", "m", "j", "j", "x")
        assert d.app.clipboard == "line 96.\nline 97.\nline 98."
        await d.press("G", "x")
        assert d.app.clipboard == "line 96.\nline 97.\nline 98.\nline 99."

    drive(story, simulation=simulation(*numbered(100)))


def test_copying_in_tmux_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "/tmp/tmux")

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("c")
        await d.shows("set -g set-clipboard on")

    drive(story, simulation=simulation(*numbered(3)))


@pytest.mark.parametrize("why", ["too much", "GNU screen"])
def test_what_no_clipboard_takes_is_saved(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TMUX", raising=False)
    if why == "GNU screen":
        monkeypatch.setenv("STY", "4711.pts")
    text = "x" * 60_000 if why == "too much" else "small"

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("c")
        await d.shows("saved to")
        assert d.app.clipboard == ""

    drive(story, simulation=simulation(entry(1, text)), size=(200, 24))
    (file,) = tmp_path.iterdir()
    assert file.read_text() == text


def test_saving_writes_the_filtered_lines_for_the_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("slash", *"line 1.", "enter", "o")
        await d.shows(f"1 line saved to {tmp_path}"[:60])
        await d.press("o")
        await d.until(lambda: len(list(tmp_path.iterdir())) == 2, "a second file, not the first again")

    drive(story, simulation=simulation(*numbered(3)), size=(200, 24))
    first, second = sorted(tmp_path.iterdir(), key=lambda path: len(path.name))
    assert first.read_text() == second.read_text() == "2026-11-23T13:53:23Z line 1.\n"
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert first.name.startswith("embed-gpu-a2-20261123-")


def test_a_file_takes_the_place_of_nothing_and_leaves_its_folder_by_no_name(tmp_path: Path) -> None:
    from tests.console.simulation import NOW

    other = tmp_path / "other"
    other.write_text("precious")
    first = logfiles.save("a", ("../../x", "/etc"), NOW, tmp_path)
    assert first.parent == tmp_path
    first.unlink()
    first.symlink_to(other)
    second = logfiles.save("b", ("../../x", "/etc"), NOW, tmp_path)
    assert (second.read_text(), other.read_text()) == ("b", "precious")
    assert second != first


def test_a_folder_that_takes_nothing_gives_way_to_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.console.simulation import NOW

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert logfiles.save("a", ("x",), NOW, tmp_path / "absent").parent == tmp_path
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OSError, match="No such file"):
        logfiles.save("a", ("x",), NOW, tmp_path / "absent")


def test_what_a_clipboard_takes_is_counted_as_it_is_sent() -> None:
    most = "x" * (logfiles.OSC_52_MOST // 4 * 3)
    assert len(base64.b64encode(most.encode())) <= logfiles.OSC_52_MOST
    assert logfiles.fits_clipboard(most)
    assert not logfiles.fits_clipboard(most + "xxx")
    assert not logfiles.fits_clipboard("é" * (len(most) // 2 + 2))


# --- the mouse -------------------------------------------------------------------------------------------------------


def test_the_mouse_selects_text_that_stays_selected_while_lines_come() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        first = int(body(d)[1].removeprefix("line ").removesuffix("."))
        await d.pilot.mouse_down(view, offset=(5, 1))
        await d.pilot.hover(view, offset=(3, 3))
        await d.pilot.mouse_up(view, offset=(3, 3))
        chosen = f"{first}.\nline {first + 1}.\nline"
        assert d.view.get_selected_text() == chosen
        assert not view.following
        say(d, *numbered(MOST_ROWS - 50, first=100))
        await d.until(lambda: len(view.rows.every) == MOST_ROWS, "old lines went")
        await d.press("c")
        assert d.app.clipboard == chosen

    drive(story, simulation=simulation(*numbered(100)))


def test_wrapped_lines_are_selected_whole() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d, EMBED, CHAT)
        await d.press("w")
        view.text_select_all()
        await d.pilot.pause()
        assert d.view.get_selected_text() == f"gpu-a2 embed {'x' * 200}\ngpu-a2 embed short"

    drive(story, simulation=simulation(entry(1, "x" * 200), entry(2, "short")), size=(80, 24))


def test_the_wheel_pauses_and_at_the_end_follows_again() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.pilot._post_mouse_events([MouseScrollUp], view, offset=(5, 5))
        await d.until(lambda: not view.following, "the wheel pauses")
        for _ in range(4):
            await d.pilot._post_mouse_events([MouseScrollDown], view, offset=(5, 5))
        await d.until(lambda: view.following, "at the end it follows")

    drive(story, simulation=simulation(*numbered(100)))


def test_a_click_puts_the_cursor_there() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.pilot.click(view, offset=(3, 1))
        assert view.cursor_text() == "line 1."
        assert not view.following

    drive(story, simulation=simulation(*numbered(5)))


# --- sizes and hostile text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60), (30, 12)])
def test_it_is_usable_at_any_size_and_follows_through_a_resize(size: tuple[int, int]) -> None:
    async def story(d: Driver) -> None:
        view = await opened(d, EMBED, CHAT)
        assert body(d)[-1].endswith("line 99.")
        await d.pilot.resize_terminal(100, 20)
        await d.until(lambda: body(d)[-1].endswith("line 99."), "still at the end")
        await d.press("w")
        await d.pilot.resize_terminal(70, 50)
        await d.until(lambda: body(d)[-1].endswith("line 99."), "still at the end")
        assert view.following

    drive(story, simulation=simulation(*numbered(100)), size=size)


def test_hostile_lines_are_text_and_do_nothing() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        for key in ("w", "t", "w", "slash", *"press", "enter", "f", *"app.quit", "enter", "c", "v"):
            await d.press(key)
        shown = "\n".join(body(d))
        assert "[/x] [@click=app.quit]press[/] [bold]\\x1b[31mred\\x1b]52;c;aGFja2Vk\\x07\\x9b2J" in shown
        assert "\\u202eevil" in shown
        await d.pilot.click(view, offset=(40, 0))
        assert d.app.is_running
        assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for line in body(d) for character in line)
        assert d.app.clipboard
        assert "\x1b" not in d.app.clipboard

    note = LogEntry(EMBED, note=HOSTILE, cut=True)
    error = LogEntry(EMBED, error=Unreachable(HOSTILE, hint=HOSTILE))
    entries = (entry(1, HOSTILE), note, error, entry(2, HOSTILE, dropped=3), entry(3, HOSTILE, replica=HOSTILE))
    drive(story, simulation=simulation(*entries), size=(200, 40))


def test_a_stream_that_has_no_line_is_followed_and_there_is_nothing_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def story(d: Driver) -> None:
        d.app.post_message(m.OpenLogs((EMBED,)))
        await d.shows("◌ asking")
        await d.shows("● following")
        assert "no lines yet" in d.text
        await d.press("o")
        await d.shows("there is nothing to save")

    drive(story, simulation=simulation())
    assert not list(tmp_path.iterdir())
