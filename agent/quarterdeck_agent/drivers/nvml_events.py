"""Waits for what the driver reports about GPUs by itself: Xid and ECC errors, through NVML's event set.

In a thread of its own, since a wait blocks. Whatever goes wrong here costs events only: gauges, health and ECC counters
are read elsewhere, and a set that fails is made anew a little later.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from quarterdeck_agent.drivers.nvml_calls import TIMEOUT, code_of, text, words
from quarterdeck_agent.drivers.nvml_seen import NvmlEvent

log = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds of one wait; also how long `end` may take, since nothing can wake a wait."""

RETRY = 10.0
PAUSE = 0.02
"""After each event: a storm of ECC errors must not take a core."""

KEPT = 1000

_KINDS: dict[int, Literal["xid", "ecc_corrected", "ecc_uncorrected"]] = {
    0x8: "xid",
    0x1: "ecc_corrected",
    0x2: "ecc_uncorrected",
}
"""Of nvml.h: nvmlEventTypeXidCriticalError, nvmlEventTypeSingleBitEccError, nvmlEventTypeDoubleBitEccError."""

WANTED = 0x8 | 0x1 | 0x2


class Events:
    """The events of the GPUs `handles` (uuid to NVML's handle), from the moment it is made until `end`.

    MIG instances have none of their own: theirs come as their GPU's.
    """

    def __init__(self, nvml: Any, handles: Mapping[str, Any], *, wait: float = WAIT) -> None:
        self._nvml = nvml
        self._uuids = {_key(handle): uuid for uuid, handle in handles.items()}
        self._handles = dict(handles)
        self._wait_ms = round(wait * 1000)
        self._came: deque[NvmlEvent] = deque(maxlen=KEPT)
        self._stop = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="nvml-events", daemon=True)
        self._thread.start()

    def take(self) -> tuple[NvmlEvent, ...]:
        """The events that came since this was last called, at most the newest thousand."""
        taken = []
        while self._came:
            taken.append(self._came.popleft())
        return tuple(taken)

    def end(self, within: float) -> bool:
        """Stop waiting. False where a wait has not come back: NVML must then not be shut down under it."""
        self._stop.set()
        self._thread.join(within)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Exception as error:  # noqa: BLE001 - the edge of the thread; a fault here must cost events only
                if (said := words(error)) != self._said:
                    self._said = said
                    log.info("no events from NVML, trying again every %g s: %s", RETRY, said)
            self._stop.wait(RETRY)

    def _follow(self) -> None:
        """Hand on events until the end, or until the set fails. Raises NVMLError."""
        events = self._nvml.nvmlEventSetCreate()
        try:
            if not [uuid for uuid, handle in self._handles.items() if self._register(handle, events)]:
                self._said = "no GPU reports events"
                return
            while not self._stop.is_set():
                self._wait(events)
        finally:
            self._nvml.nvmlEventSetFree(events)

    def _register(self, handle: Any, events: Any) -> bool:
        """False where this GPU has no such events, or is lost."""
        try:
            types = self._nvml.nvmlDeviceGetSupportedEventTypes(handle) & WANTED
            if types:
                self._nvml.nvmlDeviceRegisterEvents(handle, types, events)
        except self._nvml.NVMLError:
            return False
        return bool(types)

    def _wait(self, events: Any) -> None:
        try:
            data = self._nvml.nvmlEventSetWait_v2(events, self._wait_ms)
        except self._nvml.NVMLError as error:
            if code_of(error) == TIMEOUT:
                return
            raise
        kind = _KINDS.get(data.eventType)
        uuid = self._uuids.get(_key(data.device)) or self._ask_uuid(data.device)
        if kind is not None and uuid is not None:
            code = int(data.eventData) if kind == "xid" else None
            self._came.append(NvmlEvent(uuid, kind, code, datetime.now(UTC)))
        self._stop.wait(PAUSE)

    def _ask_uuid(self, handle: Any) -> str | None:
        try:
            return text(self._nvml.nvmlDeviceGetUUID(handle))
        except self._nvml.NVMLError:
            return None


def _key(handle: Any) -> object:
    """What is the same for all of pynvml's objects that stand for one GPU: the address that they point to."""
    return ctypes.cast(handle, ctypes.c_void_p).value if isinstance(handle, ctypes._Pointer) else handle
