"""Pure: one GPU in full, to read: whose its memory is, how it is and what to do about it, its figures and facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from textual.content import Content

from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuProcess, XidEvent
from quarterdeck_console import gpus, views
from quarterdeck_console.gpus import Device, Owner, Share
from quarterdeck_console.tui import marks, words
from quarterdeck_console.tui.screens.gpus_rows import FILLS
from quarterdeck_console.tui.screens.version_text import heading, pair
from quarterdeck_console.views import NOTHING, Severity

XIDS = 8
"""Xids that are told."""

_COLOURS = ("$text-success", "$text-accent", "$text-primary", "$text-secondary")
_STYLES = {
    Owner.UNMANAGED: "$text-warning", Owner.UNEXPLAINED: "$text-error", Owner.DRIVER: "$foreground-muted",
    Owner.FREE: "$foreground-muted",
}  # fmt: skip


def device(host: str, each: Device, known: Sequence[Device], width: int) -> Content:
    """Everything about one GPU or MIG instance; `known` are all of its host, `width` the columns there are."""
    gpu = each.gpu
    lines = [
        words.joined((f"{each.what} on {host}  ", "bold"), (gpus.short_name(gpu.name), "")),
        *_health(each),
    ]  # fmt: skip
    if each.facts is not None:
        lines += _xids(each.facts.xids)
    if gpu.memory_total is not None or each.use is not None:
        lines += _memory(each, known, width)
    lines += _now(gpu)
    if each.facts is not None:
        lines += _facts(each.facts, known)
    lines.append(pair("uuid", gpu.uuid))
    return words.lines(lines)


# --- health --------------------------------------------------------------------------------------------------------


def _health(each: Device) -> Iterator[Content]:
    gpu, meaning = each.gpu, gpus.severity(each.gpu)
    symbol = marks.SYMBOLS[meaning]
    if gpu.health == GpuHealth.OK:
        yield words.line(f"{symbol} ok", meaning)
    else:
        yield words.line(f"{symbol} {gpu.health}: {gpu.why or 'the host does not say why'}", meaning)
    if gpu.throttle:
        yield words.line(f"▲ slowed down: {', '.join(gpu.throttle)}", Severity.WARNING)


def _xids(found: Sequence[XidEvent]) -> Iterator[Content]:
    """The newest, each with what NVIDIA's catalogue says to do."""
    for event in found[:XIDS]:
        yield words.joined(
            (f"{views.instant(event.at)}  ", Severity.MUTED), (f"Xid {event.code}  ", "bold"),
            (event.meaning, ""), (f" → {event.action}" if event.action else "", Severity.MUTED),
        )  # fmt: skip


# --- memory --------------------------------------------------------------------------------------------------------


def _memory(each: Device, known: Sequence[Device], width: int) -> Iterator[Content]:
    yield heading(f"MEMORY  {gpus.memory(each.gpu)}")
    instances = [one for one in known if one.gpu.parent == each.gpu.uuid]
    for one in instances:
        yield words.line(f"{one.what}  {one.gpu.profile or ''}  {gpus.memory(one.gpu)}  {_whose(one)}".rstrip())
    if instances:
        return
    drawn = list(_styled(gpus.shares(each)))
    total = each.gpu.memory_total
    if total and each.use is not None:
        yield _bar(drawn, total, min(60, max(20, width - 2)))
    room = max((len(share.words) for share, _, _ in drawn), default=0)
    processes = {gpus.unmanaged(one).words: one for one in (each.use.processes if each.use is not None else ())}
    for share, mark, style in drawn:
        more = _process(processes.get(share.words)) if share.owner == Owner.UNMANAGED else ""
        yield words.joined(
            (f"{mark} ", style), (f"{share.words:<{room}} ", ""), (f"{views.size(share.memory):>9}", "bold"),
            (f"  {more}" if more else "", Severity.MUTED),
        )  # fmt: skip
    if each.use is None:
        yield words.line("the host does not tell whose memory it is", Severity.MUTED)


def _whose(each: Device) -> str:
    found = [share.words for share in gpus.shares(each) if share.owner in gpus.CLAIMED]
    return ", ".join(found)


def _styled(shares: Iterable[Share]) -> Iterator[tuple[Share, str, str]]:
    """Each share with its mark and its colour; deployments side by side differ in both."""
    number = 0
    for share in shares:
        if share.owner == Owner.DEPLOYMENT:
            yield share, "█▇"[number % 2], _COLOURS[number % len(_COLOURS)]
            number += 1
        else:
            yield share, FILLS[share.owner], _STYLES[share.owner]


def _bar(drawn: Sequence[tuple[Share, str, str]], total: int, width: int) -> Content:
    """One bar of all memory, each owner in the mark that stands before its words."""
    used = [each for each in drawn if each[0].owner != Owner.FREE]
    columns = marks.columns([(share.memory or 0) / total for share, _, _ in used], width)
    pieces = [(mark * count, style) for (_, mark, style), count in zip(used, columns, strict=True)]
    rest = width - sum(columns)
    return words.joined(*pieces, ("░" * rest, _STYLES[Owner.FREE]))


def _process(each: GpuProcess | None) -> str:
    if each is None:
        return ""
    known = [each.kind if each.kind != "compute" else "", "" if each.utilisation is None else _busy(each.utilisation)]
    return ", ".join(part for part in known if part)


def _busy(value: float) -> str:
    return f"{views.ratio(value)} busy"


# --- figures and facts ---------------------------------------------------------------------------------------------


def _now(gpu: Gpu) -> Iterator[Content]:
    if gpu.utilisation is None and gpu.temperature is None and gpu.power is None:
        return
    yield heading("NOW")
    units = (
        ("memory", gpu.utilisation_memory), ("encoder", gpu.utilisation_encoder), ("decoder", gpu.utilisation_decoder),
    )  # fmt: skip
    parts = [f"{name} {views.ratio(value)}" for name, value in units if value is not None]
    yield pair("load", views.ratio(gpu.utilisation) + (f" ({', '.join(parts)})" if parts else ""))
    yield pair("power", f"{gpus.power(gpu)}, {gpus.temperature(gpu)}" + _fan(gpu))
    if gpu.clock_graphics is not None or gpu.clock_memory is not None:
        state = "" if gpu.performance_state is None else f", P{gpu.performance_state}"
        yield pair("clocks", f"{_mhz(gpu.clock_graphics)} graphics, {_mhz(gpu.clock_memory)} memory{state}")
    if gpu.pcie_sent is not None or gpu.pcie_received is not None:
        yield pair("PCIe", f"{_traffic(gpu.pcie_sent)} sent, {_traffic(gpu.pcie_received)} received")


def _fan(gpu: Gpu) -> str:
    return "" if gpu.fan is None else f", fan {views.ratio(gpu.fan)}"


def _mhz(hertz: int | None) -> str:
    return NOTHING if hertz is None else f"{hertz / 1e6:.0f} MHz"


def _traffic(rate: int | None) -> str:
    return NOTHING if rate is None else f"{views.size(rate)}/s"


def _facts(facts: GpuFacts, known: Sequence[Device]) -> Iterator[Content]:
    yield heading("FACTS")
    capability = "" if facts.compute_capability is None else f", compute {'.'.join(map(str, facts.compute_capability))}"
    if facts.driver is not None or facts.cuda is not None:
        yield pair("driver", f"{facts.driver or NOTHING}, CUDA up to {facts.cuda or NOTHING}{capability}")
    if facts.pci_bus is not None:
        yield pair("PCI", facts.pci_bus + _link(facts))
    if facts.nvlinks:
        yield pair("NVLink", nvlinks(facts, known))
    if facts.ecc_enabled is not None:
        yield words.joined(pair("ECC", ""), *_ecc(facts))
    if facts.remapped_rows is not None or facts.retired_pages is not None:
        yield words.joined(pair("rows", ""), *_rows(facts))
    modes = (
        ("compute mode", facts.compute_mode), ("persistence", _yes(facts.persistence)), ("MIG", _yes(facts.mig_enabled))
    )  # fmt: skip
    if told := [f"{name} {value}" for name, value in modes if value is not None]:
        yield pair("modes", ", ".join(told))
    if facts.labels:
        yield pair("labels", ", ".join(facts.labels))


def _link(facts: GpuFacts) -> str:
    if facts.pcie_generation is None or facts.pcie_width is None:
        return ""
    now = f", gen {facts.pcie_generation} ×{facts.pcie_width}"
    most = (facts.pcie_generation_max, facts.pcie_width_max)
    slower = None not in most and most != (facts.pcie_generation, facts.pcie_width)
    return now + (f" (may be gen {most[0]} ×{most[1]})" if slower else "")


def nvlinks(facts: GpuFacts, known: Sequence[Device]) -> str:
    """`4 of 6 up: GPU 1 ×2, switch ×2`."""
    up = [link for link in facts.nvlinks if link.active]
    names = {each.gpu.uuid: each.what for each in known}
    peers = Counter("switch" if link.peer is None else names.get(link.peer, link.peer) for link in up)
    to = ", ".join(f"{name} ×{count}" for name, count in peers.items())
    return f"{len(up)} of {len(facts.nvlinks)} up" + (f": {to}" if to else "")


def _ecc(facts: GpuFacts) -> Iterator[tuple[str, str | Severity]]:
    if not facts.ecc_enabled:
        yield "off", ""
        return
    bad = bool(facts.ecc_uncorrected)
    yield f"{_count(facts.ecc_corrected)} corrected (ever {_count(facts.ecc_corrected_ever)}), ", ""
    uncorrected = f"{_count(facts.ecc_uncorrected)} uncorrected (ever {_count(facts.ecc_uncorrected_ever)})"
    yield uncorrected, Severity.BAD if bad else ""


def _rows(facts: GpuFacts) -> Iterator[tuple[str, str | Severity]]:
    known = (("remapped", facts.remapped_rows), ("retired pages", facts.retired_pages))
    yield ", ".join(f"{count} {name}" for name, count in known if count is not None), ""
    for name, value in (
        ("a remap waits for a reset", facts.remap_pending), ("a remap FAILED", facts.remap_failed),
        ("a retirement waits for a reboot", facts.retired_pending),
    ):  # fmt: skip
        if value:
            yield f", ▲ {name}", Severity.BAD


def _count(value: int | None) -> str:
    return NOTHING if value is None else str(value)


def _yes(value: bool | None) -> str | None:
    return None if value is None else "on" if value else "off"
