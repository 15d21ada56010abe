"""Keeps what is remembered of each GPU over restarts of the agent, and has every reading of NVML judged by it.

A new boot or a driver that was loaded anew clears the memory; so does somebody who trusts the GPU again. It writes the
Xids; that somebody trusts a GPU is the API's to write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers.nvml_seen import NvmlSeen
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.gpus.health import LEVELS, Record, judge, observe, trusted
from quarterdeck_agent.gpus.xids import XidCatalogue
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuUse, PartState, XidEvent
from quarterdeck_agent.rows import GpuMemory

log = logging.getLogger(__name__)

SILENT_FOR = 15.0
"""Seconds after which a GPU that does not answer, while others do, is taken for lost."""


class Memories(Protocol):
    """The store, as far as it remembers GPUs. Its methods block."""

    @property
    def writes(self) -> int: ...

    def gpu_memories(self) -> Mapping[str, GpuMemory]: ...

    def remember_gpu(self, memory: GpuMemory) -> None: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """A reading's GPUs with their health, and its facts with their Xids."""

    gpus: tuple[Gpu, ...]
    facts: tuple[GpuFacts, ...]


class GpuRecords:
    """`judged` is called once for every reading of NVML. `driver` tells one load of the driver from the next."""

    def __init__(self, store: Memories, catalogue: XidCatalogue, clock: Clock, driver: Callable[[], str]) -> None:
        self._store, self._catalogue, self._clock, self._driver = store, catalogue, clock, driver
        self._records: dict[str, Record] = {}
        self._trusted: dict[str, datetime] = {}
        self._silent: dict[str, float] = {}
        self._memories: dict[str, GpuMemory] = {}
        self._read_at = -1
        self._load = ""
        self._failing = ""

    async def judged(self, seen: NvmlSeen, uses: Sequence[GpuUse]) -> Judged:
        """The reading with each GPU judged by what it says, who uses it, and what is remembered of it."""
        self._notice_driver(seen)
        await self._recall()
        facts = {each.uuid: each for each in seen.facts}
        owners = {use.uuid: use for use in uses}
        news = self._news(seen)
        now, found = self._clock.now(), dict[str, tuple[GpuHealth, str]]()
        for gpu in self._heard(seen.gpus, now):
            fact, use = facts.get(gpu.uuid), owners.get(gpu.uuid)
            record = observe(self._record(gpu.uuid), gpu, fact, use, news.get(gpu.uuid, ()), now)
            self._records[gpu.uuid] = record
            found[gpu.uuid] = judge(gpu, fact, use, record)
        await self._keep(gpu.uuid for gpu in seen.gpus if gpu.parent is None)
        return Judged(
            tuple(with_health(gpu, found) for gpu in seen.gpus),
            tuple(self._with_xids(each) for each in seen.facts),
        )

    def _with_xids(self, facts: GpuFacts) -> GpuFacts:
        record = self._records.get(facts.uuid)
        return facts if record is None or record.xids == facts.xids else replace(facts, xids=record.xids)

    def _heard(self, gpus: tuple[Gpu, ...], now: float) -> tuple[Gpu, ...]:
        """The GPUs, of which one that has been silent for long counts as lost: unless the whole driver hangs."""
        silent = {gpu.uuid for gpu in gpus if gpu.health is not GpuHealth.OK and gpu.memory_total is None}
        self._silent = {uuid: self._silent.get(uuid, now) for uuid in silent}
        if len(silent) == len(gpus):
            return gpus
        lost = {uuid for uuid, since in self._silent.items() if now - since >= SILENT_FOR}
        return tuple(replace(gpu, health=GpuHealth.LOST) if gpu.uuid in lost else gpu for gpu in gpus)

    def _notice_driver(self, seen: NvmlSeen) -> None:
        """Forget everything when the driver is another one, or had gone in between."""
        load = f"{self._clock.boot_id}:{self._driver()}:{seen.version}" if seen.version else self._load
        if self._load and (load != self._load or seen.state is PartState.ABSENT):
            self._records = dict.fromkeys(self._records, Record())
        self._load = load

    async def _recall(self) -> None:
        """Read what the store has once more when something was written to it: a GPU may have been trusted."""
        writes = self._store.writes
        if writes == self._read_at:
            return
        try:
            self._memories = dict(await asyncio.to_thread(self._store.gpu_memories))
            self._read_at = writes
        except AgentError as error:
            self._tell(f"what is remembered of the GPUs cannot be read: {error.detail}")

    def _record(self, uuid: str) -> Record:
        """The record of a GPU before this reading: what is in memory, or else what an earlier agent wrote."""
        memory, record = self._memories.get(uuid, GpuMemory(uuid)), self._records.get(uuid)
        if record is None and memory.load != self._load:
            return Record()
        if record is None:
            record = Record(tuple(self._catalogue.event(*xid) for xid in memory.xids), memory.trusted_errors)
        if memory.trusted_at is not None and memory.trusted_at != self._trusted.get(uuid):
            record = trusted(record, memory.trusted_at, memory.trusted_errors)
            self._trusted[uuid] = memory.trusted_at
        return record

    def _news(self, seen: NvmlSeen) -> dict[str, list[XidEvent]]:
        """The Xids of this reading by GPU; those of a MIG instance are its GPU's."""
        whole = {gpu.uuid: gpu.parent for gpu in seen.gpus if gpu.parent is not None}
        news: dict[str, list[XidEvent]] = {}
        for event in seen.events:
            if event.kind == "xid" and event.code is not None:
                told = self._catalogue.event(event.code, event.at)
                news.setdefault(whole.get(event.uuid, event.uuid), []).append(told)
                log.warning("Xid %d on %s: %s; %s", told.code, event.uuid, told.meaning, told.action)
        return news

    async def _keep(self, uuids: Iterable[str]) -> None:
        """Write what is different from what is written."""
        for uuid in uuids if self._load else ():
            record, before = self._records[uuid], self._memories.get(uuid, GpuMemory(uuid))
            xids = tuple((xid.code, xid.at) for xid in record.xids)
            memory = replace(before, load=self._load, xids=xids, trusted_errors=record.trusted_errors)
            if memory == before:
                continue
            try:
                await asyncio.to_thread(self._store.remember_gpu, memory)
                self._memories[uuid] = memory
            except AgentError as error:
                self._tell(f"an Xid could not be written: {error.detail}")

    def _tell(self, what: str) -> None:
        if what != self._failing:
            self._failing = what
            log.warning("%s", what)


def with_health(gpu: Gpu, found: Mapping[str, tuple[GpuHealth, str]]) -> Gpu:
    """The GPU with its health; a MIG instance is no better than the GPU it is cut from."""
    health, why = found[gpu.uuid]
    whole, words = found.get(gpu.parent or "", (GpuHealth.OK, ""))
    if LEVELS.index(whole) > LEVELS.index(health):
        health, why = whole, words
    return gpu if (gpu.health, gpu.why) == (health, why) else replace(gpu, health=health, why=why)
