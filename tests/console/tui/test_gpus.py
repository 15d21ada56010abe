"""The GPUs screen: every GPU of the fleet, who runs on it, and its history as a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console import chart, gpus
from quarterdeck_console.errors import NotFound
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui import marks
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.history import History
from quarterdeck_console.tui.screens import fleet_rows, gpus_text
from quarterdeck_console.tui.screens.gpus import GpusScreen
from quarterdeck_console.tui.widgets.pane import Pane
from tests.console.simulation import FELL_OFF, NOW, Simulation, ago, facts, gpu, held, host_status, mig, replica
from tests.console.tui.driving import Driver, drive

HOSTILE = "[/x] [@click=app.quit]quit[/] \x1b]52;c;aGk=\x07"


async def opened(d: Driver) -> GpusScreen:
    await d.press("4")
    await d.shows("LOAD")
    found = d.view
    assert isinstance(found, GpusScreen)
    await d.until(lambda: found.gpu is None or "now" in d.text or "no" in d.text, "its chart is drawn")
    return found


def series_asked(d: Driver) -> list[tuple[str, str, str]]:
    return [what for kind, what in d.simulation.asked if kind == "series"]


def test_every_gpu_is_a_row_with_bars_and_whom_it_serves() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert len(d.view.main.order if d.view.main else ()) == 10, "7 GPUs and 3 MIG instances"
        line = d.line_with("512/700W")
        for each in ("gpu-a1", "░  71%", "61/80 GiB", "64°", "llama-chat 56G", " H100 80GB HBM3"):
            assert each in line
        assert "reranker" in d.line_with(" 70/700W")

    drive(story, size=(140, 32))


def test_a_gpu_that_fell_off_the_bus_says_why_and_one_of_a_lost_host_keeps_its_values() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "⚠ Xid 79: lost since " in d.line_with("gpu-a2          2")
        d.simulation.lose("gpu-b1")
        await d.shows("unreachable for")
        assert "30/80 GiB" in d.line_with("gpu-b1 ○")

    drive(story, size=(140, 32))


def test_at_80_by_24_load_memory_temperature_and_owner_are_there() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        line = d.line_with("61/80 GiB")
        assert "71%" in line and "64°" in line and "llama-chat" in line
        assert "load of GPU 0 on gpu-a1" in d.text and "now" in d.text
        assert all(len(each) <= 80 for each in d.text.splitlines())

    drive(story, size=(80, 24))


def test_the_chart_follows_the_cursor_and_asks_once_for_what_is_shown() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("j", "j", "k")
        await d.shows("load of GPU 1 on gpu-a1")
        await d.until(lambda: ("gpu-a1", "gpu.utilisation", "GPU-gpu-a1-1") in series_asked(d), "it is asked for")
        assert len(series_asked(d)) == len(set(series_asked(d)))
        await d.shows("now")

    drive(story)


def test_m_goes_through_the_gauges_and_t_through_the_spans() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        for title in ("memory", "temperature", "power", "load"):
            await d.press("m")
            await d.shows(f"{title} of GPU 0 on gpu-a1, last 15m")
        assert ("gpu-a1", "gpu.power", "GPU-gpu-a1-0") in series_asked(d)
        await d.press("t")
        await d.shows("last 1h")
        for span in ("24h", "7d", "30d", "5m"):
            await d.press("t")
            await d.shows(f"last {span}")

    drive(story)


def test_a_wide_terminal_shows_all_four_gauges() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        for title in ("load", "memory", "temperature", "power"):
            await d.shows(f"{title} of GPU 0 on gpu-a1")
        assert len(series_asked(d)) == 4

    drive(story, size=(200, 60))


def test_a_terminal_that_becomes_wide_asks_for_the_rest() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.pilot.resize_terminal(200, 60)
        await d.shows("power of GPU 0 on gpu-a1")
        await d.until(lambda: len(set(series_asked(d))) == 4, "all four are asked for")

    drive(story)


def test_the_history_is_asked_for_again_while_it_is_looked_at() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        before = len(series_asked(d))
        d.simulation.at += timedelta(seconds=6)
        d.simulation.tick()
        await d.until(lambda: len(series_asked(d)) > before, "asked again")

    drive(story)


def test_a_host_without_that_history_says_so() -> None:
    class Without(Simulation):
        async def series(
            self, host: str, name: str, key: str, since: datetime | None, points: int | None = None
        ) -> p.Series:
            raise NotFound("There is no such series", host=host)

    async def story(d: Driver) -> None:
        await opened(d)
        await d.shows("There is no such series")

    drive(story, simulation=Without())


def test_a_fleet_without_gpus_says_so() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.shows("no host has a GPU that NVML can see")

    drive(story, simulation=Simulation({"a": host_status("a")}))


def test_enter_describes_what_runs_on_it() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("enter")
        await d.shows("› llama-chat on gpu-a1")

    drive(story)


def test_figures_change_in_place() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.press("j")
        d.simulation.delta("gpu-a1", "gpu", "GPU-gpu-a1-0", gpu("gpu-a1", 0, utilisation=0.05, temperature=91.0))
        await d.until(lambda: "  5%" in d.text and "91°" in d.text, "the new figures")
        assert view.gpu is not None and view.gpu[1].index == 1

    drive(story)


def test_hostile_names_are_text() -> None:
    wicked = gpu("a", 0, name=HOSTILE, uuid=HOSTILE)
    gone = p.Gpu(1, "gone", HOSTILE)
    part = p.Part("nvml", p.PartState.FAILED, NOW, detail=HOSTILE)
    simulation = Simulation({"a": host_status("a", gpus=(wicked, gone), parts=(part,))})
    simulation.points[("a", "gpu.utilisation", HOSTILE)] = p.Series("gpu.utilisation", HOSTILE, HOSTILE, ())

    async def story(d: Driver) -> None:
        await opened(d)
        for key in ("j", "k", "m"):
            await d.press(key)
            assert "\x1b" not in d.text and "\x07" not in d.text
        assert "[@click=app.quit]" in d.text and d.app.is_running

    drive(story, simulation=simulation, size=(160, 40))


# --- whose memory it is ----------------------------------------------------------------------------------------------


def about(d: Driver) -> str:
    return d.app.screen.query_one("#about", Pane).text


def test_a_row_draws_memory_by_owner_and_says_whose_it_is() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        line = d.line_with("512/700W")
        assert "██████▓▒" in line, "deployments, unmanaged, unexplained"
        assert "llama-chat 56G · unmanaged 3.3G · unexplained 1.7G" in line
        assert "  –" in d.line_with("gpu-a2          1"), "nobody's"

    drive(story, size=(180, 40))


def test_the_memory_of_the_gpu_under_the_cursor_is_told_to_the_process() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.until(lambda: "free" in about(d), "it is there")
        for line in (
            "llama-chat r17 (llama-chat-17-1)  56.0 GiB",
            "unmanaged pid 4711 alice python    3.0 GiB  2% busy",
            "unmanaged pid 2101 root Xorg       300 MiB  graphics",
            "unexplained                        1.7 GiB",
            "free                              19.0 GiB",
        ):
            assert line in about(d)
        for fact in ("570.86.15, CUDA up to 12.8, compute 9.0", "00000000:18:00.0, gen 5 ×16", "2 of 2 up: GPU 1 ×2"):
            assert fact in about(d)
        assert "0 corrected (ever 4), 0 uncorrected (ever 0)" in about(d)

    drive(story)


def test_whose_memory_it_is_changes_in_place() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        stranger = p.GpuProcess(815, 40 << 30, user="eve", command="train")
        d.simulation.delta("gpu-a1", "gpu_use", "GPU-gpu-a1-0", p.GpuUse("GPU-gpu-a1-0", (stranger,)))
        await d.until(lambda: "unmanaged pid 815 eve train" in about(d), "it is told")
        assert "unmanaged 40G" in d.line_with("512/700W")

    drive(story, size=(180, 40))


def test_mig_instances_stand_below_their_gpu_with_their_own_memory() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        rows = [line for line in d.text.splitlines() if line.lstrip("▌ ").startswith("gpu-b1")]
        assert ["MIG: vad" in rows[0], "MIG 3g.40gb" in rows[1], "MIG 1g.10gb" in rows[2]] == [True] * 3
        assert " 0.1 " in rows[2] and "8/10 GiB" in rows[2] and "vad 7.4G" in rows[2]
        await d.press("G", "k", "k", "k")
        await d.until(lambda: "GPU 0 on gpu-b1" in about(d), "the GPU itself")
        assert "MIG 0.1  1g.10gb  8/10 GiB  vad r4 (vad-4-1), unexplained" in about(d)
        await d.press("j", "j", "enter")
        await d.shows("› vad on gpu-b1")

    drive(story, size=(180, 40))


def test_a_sick_gpu_says_why_and_what_to_do() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press(*"jjjjj")
        await d.until(lambda: "GPU 2 on gpu-a2" in about(d), "the lost one")
        assert f"✖ lost: {FELL_OFF}" in about(d)
        assert "Xid 79  the GPU fell off the bus → reboot the host" in about(d)
        assert "lost: Xid 79" in d.text

    drive(story)


def test_at_80_by_24_v_shows_the_text_in_place_of_the_chart_and_esc_leaves_it() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "unmanaged pid 4711 alice" not in d.text.partition("WHOSE")[2].partition("GPU 0 on")[0]
        await d.press("v")
        await d.shows("llama-chat r17 (llama-chat-17-1)  56.0 GiB")
        assert "-15m" not in d.text
        await d.press("escape")
        await d.shows("-15m")
        await d.press("z")
        await d.until(lambda: "WHOSE MEMORY" not in d.text, "the table is gone")
        await d.press("escape")
        await d.shows("WHOSE MEMORY")
        assert all(len(line) <= 80 for line in d.text.splitlines())

    drive(story, size=(80, 24))


def test_a_month_is_asked_for_in_no_more_points_than_can_be_drawn() -> None:
    asked: list[tuple[datetime | None, int | None]] = []

    class Month(Simulation):
        async def series(
            self, host: str, name: str, key: str, since: datetime | None, points: int | None = None
        ) -> p.Series:
            asked.append((since, points))
            return await super().series(host, name, key, since, points)

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press(*"tttt")
        await d.shows("last 30d")
        await d.shows("-30d")
        await d.until(lambda: asked[-1][0] == d.simulation.at - timedelta(days=30), "a month of it")
        assert asked[-1][1] == 600
        assert "qd gpus --host gpu-a1 --since 30d" in d.text

    drive(story, simulation=Month(), size=(200, 60))


def test_a_late_answer_about_another_span_is_not_shown() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.shows("highest 90%")
        old = p.Series("gpu.utilisation", "GPU-gpu-a1-0", "ratio", (p.Sample(d.simulation.at, 0.01),))
        late = m.SeriesCame("gpu-a1", old.name, old.key, d.simulation.at - timedelta(days=30), old)
        assert view.post_message(late)
        await d.press("j", "k")
        await d.pilot.pause()
        assert "highest 90%" in d.text

    drive(story)


def test_only_the_last_histories_are_remembered() -> None:
    many = tuple(gpu("a", index) for index in range(40))

    async def story(d: Driver) -> None:
        view = await opened(d)
        for each in many:
            series = p.Series("gpu.power", each.uuid, "W", (p.Sample(NOW, 1.0),))
            view._wanted_since[("a", series.name, series.key)] = NOW
            view.post_message(m.SeriesCame("a", series.name, series.key, NOW, series))
        await d.until(lambda: ("a", "gpu.power", "GPU-a-39") in view._series, "the last has come")
        assert len(view._series) == 32
        assert ("a", "gpu.power", "GPU-a-0") not in {*view._series, *view._wanted_since}

    drive(story, simulation=Simulation({"a": host_status("a", gpus=many)}))


def strip(room: int, *known: p.Gpu, facts: tuple[p.GpuFacts, ...] = ()) -> list[str]:
    """The cells of a host's GPUs on the home screen."""
    host = HostState("a", "live", NOW, NOW, status=host_status("a", gpus=known, gpu_facts=facts))
    (row,) = fleet_rows.host_lines(FleetState({"a": host}), History(), room, NOW)
    line = row.line
    return [cell.text for cell in line.cells[4:]] + ([line.note[1].text] if line.note else [])


def test_the_host_strip_says_what_is_wrong_with_a_gpu_that_still_answers() -> None:
    sick = gpu("a", 1, health=p.GpuHealth.SICK, why="Xid 48 at 13:58 UTC on 23 Nov: a memory error; reset it")
    xids = (p.XidEvent(ago(minutes=5), 48, "a memory error", "reset the GPU"),)
    slow = gpu("a", 2, health=p.GpuHealth.DEGRADED, why="slowed down for more than 60 s", memory_used=8 << 30)
    found = strip(3, gpu("a", 0), sick, slow, facts=(p.GpuFacts(sick.uuid, xids=xids),))
    assert found[0] == "░░░░░░░░░░   0%   0/80G"
    assert found[1] == f"⚠ Xid 48: sick {xids[0].at.astimezone():%H:%M}" and len(found[1]) <= fleet_rows.GPU
    assert found[2] == "░░░░░░░░░░   0%   8/80G▲" and len(found[2]) <= fleet_rows.GPU


def test_the_host_strip_shows_gpus_and_not_their_instances() -> None:
    cut = gpu("a", 0, mig=True, utilisation=None, memory_used=5 << 30)
    assert strip(1, cut, mig("a", 0, 0, "1g.10gb"), mig("a", 0, 1, "1g.10gb"))[:2] == ["MIG               5/80G", ""]


def test_of_gpus_without_room_the_sick_one_is_told_before_the_busiest() -> None:
    sick = gpu("a", 1, health=p.GpuHealth.SICK, why="1 memory error")
    assert strip(0, gpu("a", 0, utilisation=1.0), sick) == ["⚠ sick: 1 memory error #1 of 2"]


@pytest.mark.parametrize(
    ("shares", "drawn"),
    [
        ([0.5, 0.25], "████▓▓░░"), ([0.001, 0.001], "█▓░░░░░░"), ([1.0, 0.001], "███████▓"), ([0.0, 0.0], "░░░░░░░░"),
        ([0.9, 0.9], "████▓▓▓▓"),
    ],
)  # fmt: skip
def test_whatever_is_there_gets_a_column(shares: list[float], drawn: str) -> None:
    assert marks.parts(list(zip("█▓", shares, strict=True)), 8) == drawn


def test_two_deployments_on_one_gpu_differ_without_colour() -> None:
    both = tuple(held(replica(name, 1), 20 << 30, pid) for pid, name in enumerate(("a", "b")))
    each = gpus.Device(gpu("x", 0, memory_used=40 << 30), "0", None, p.GpuUse("GPU-x-0", both))
    text = gpus_text.device("x", each, (each,), 82).plain
    assert "█" * 15 + "▇" * 15 + "░" * 30 in text
    assert "█ a r1 (a-1-1)" in text and "▇ b r1 (b-1-1)" in text


def test_every_fact_has_its_words() -> None:
    known = facts(
        "x", 0, nvlinks=(p.NvLink(0, True, 4, None), p.NvLink(1, True, 4, "GPU-elsewhere"), p.NvLink(2, False)),
        pcie_generation=3, retired_pages=2, retired_pending=True, remap_pending=True, remap_failed=True,
        ecc_uncorrected=1, labels=("fast", "left"),
    )  # fmt: skip
    busy = gpu(
        "x", 0, throttle=("thermal",), clock_graphics=1_980_000_000, performance_state=0, fan=0.3, pcie_sent=1 << 30,
        utilisation_encoder=0.1,
    )  # fmt: skip
    text = gpus_text.device("x", gpus.Device(busy, "0", known), (), 80).plain
    for words in (
        "2 of 3 up: switch ×1, GPU-elsewhere ×1", "gen 3 ×16 (may be gen 5 ×16)", "2 retired pages",
        "▲ a remap waits for a reset", "▲ a remap FAILED", "▲ a retirement waits for a reboot", "1 uncorrected",
        "fast, left", "▲ slowed down: thermal", "1980 MHz graphics, – memory, P0", "fan 30%", "1.0 GiB/s sent",
        "(encoder 10%)", "does not tell whose memory",
    ):  # fmt: skip
        assert words in text, words


# --- the chart -------------------------------------------------------------------------------------------------------


def samples(values: Sequence[float | None], seconds: float = 10.0) -> list[p.Sample]:
    return [p.Sample(ago(seconds=seconds * (len(values) - n)), value) for n, value in enumerate(values)]


def drawn(values: Sequence[float | None], top: float | None = 1.0, size: tuple[int, int] = (29, 6)) -> list[str]:
    start = ago(seconds=10 * max(1, len(values)))
    return chart.draw(samples(values), start, NOW, size, top, lambda value: f"{value:.0%}")


def test_a_chart_has_the_size_that_was_asked_for() -> None:
    for size in ((29, 6), (80, 12), (5, 1)):
        lines = drawn([0.5] * 40, size=size)
        assert len(lines) == max(3, size[1])
        assert {len(line) for line in lines} == {max(chart.AXIS + chart.LEAST, size[0])}


def test_low_is_below_and_high_is_above() -> None:
    low, high = drawn([0.0] * 40), drawn([1.0] * 40)
    assert "⠉" in high[0] and "⣀" in low[-2]
    assert not any("⠉" in line for line in low)


def test_a_gap_stays_a_gap() -> None:
    lines = drawn([1.0] * 15 + [None] * 10 + [1.0] * 15)
    row = lines[0].partition("│")[2]
    assert row.startswith("⠉") and row.endswith("⠉") and "   " in row


def test_points_far_apart_are_joined() -> None:
    row = drawn([1.0] * 5, size=(49, 6))[0].partition("│")[2]
    assert " " not in row[:30]


@pytest.mark.parametrize("values", [[], [None], [math.nan, math.inf], [0.0], [1e30, -5.0], [1e-30]])
def test_odd_values_are_drawn_without_harm(values: list[float | None]) -> None:
    assert len(drawn(values, top=None)) == 6


@pytest.mark.parametrize(("value", "bound"), [(0, 1), (0.9, 1), (1, 1), (1.1, 2), (3, 5), (60, 100), (512, 1000)])
def test_a_scale_ends_at_a_round_number(value: float, bound: float) -> None:
    assert chart.rounded_up(value) == pytest.approx(bound)


def test_samples_outside_the_span_are_left_out() -> None:
    lines = chart.draw(
        [p.Sample(ago(hours=2), 1.0), replace(p.Sample(NOW, 0.0), at=NOW + timedelta(hours=1))], ago(minutes=5), NOW,
        (40, 6), 1.0, str,
    )  # fmt: skip
    assert all(set(line.partition("│")[2]) <= {" "} for line in lines[:-1])
