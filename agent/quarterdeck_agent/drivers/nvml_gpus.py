"""All GPUs of one host from `nvmlInit` to `nvmlShutdown`, and from there to the next `nvmlInit`.

NVML counts GPUs once, so it is begun anew when the kernel shows others, when it says that it was shut down or that the
driver is another one, and now and then while a GPU is lost. Belongs to one thread at a time; the reader sees to that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from time import monotonic
from typing import Any

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers import nvml_library
from quarterdeck_agent.drivers.nvml_calls import (
    DRIVER_NOT_LOADED,
    LIBRARY_NOT_FOUND,
    VERSION_MISMATCH,
    NvmlEnded,
    Progress,
    code_of,
    words,
)
from quarterdeck_agent.drivers.nvml_device import FACTS_EVERY, Device
from quarterdeck_agent.drivers.nvml_events import WAIT, Events
from quarterdeck_agent.drivers.nvml_facts import versions
from quarterdeck_agent.drivers.nvml_seen import NvmlEvent
from quarterdeck_agent.protocol import PartState

RETRY = 5.0
"""NVML that could not be begun is tried again this often, or once GPUs came: each try may load the kernel module."""

LOST_RETRY = 60.0
"""A lost GPU is looked for again this often: the driver may take seconds to find that it is still lost."""

RENEW = 300.0
"""While a GPU is lost, NVML is begun anew this often: one that was reset or came back shows up only then."""

EVENTS_END = 2 * WAIT

_ABSENT = frozenset({LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED})

log = logging.getLogger(__name__)


class Turn:
    """One pass over the GPUs: which ones it leaves out, and where it is.

    `device` is the GPU that is being asked, `None` while NVML itself is, and `since` when that began (monotonic). A
    turn that was `left` behind, since a call of it hangs, changes nothing any more but that GPU.
    """

    def __init__(self, without: frozenset[Device]) -> None:
        self.without = without
        self.device: Device | None = None
        self.since = 0.0
        self.progress = Progress()
        self.left = False

    def ask(self, device: Device) -> None:
        """Come to a GPU."""
        self.since = monotonic()
        self.device, self.progress = device, device.progress


class Gpus:
    """The GPUs, and how NVML is. Only while it is `opened` their values are of now; `unloaded`: its driver is gone.

    `gone` are GPUs that were lost, and that NVML does not list any more.
    """

    def __init__(
        self,
        library: Any,
        clock: Clock,
        nodes: Callable[[], object],
        *,
        retry: float = RETRY,
        lost_retry: float = LOST_RETRY,
        renew: float = RENEW,
        event_wait: float = WAIT,
    ) -> None:
        self.state, self.detail, self.version = PartState.ABSENT, "", ""
        self.opened = self.unloaded = False
        self.devices: tuple[Device, ...] = ()
        self.gone: tuple[Device, ...] = ()
        self._nvml, self._clock, self._nodes = library, clock, nodes
        self._retry, self._lost_retry, self._renew, self._event_wait = retry, lost_retry, renew, event_wait
        self._retry_at = self._look_at = self._renew_at = 0.0
        self._nodes_seen: object = None
        self._owed = 0
        self._before: tuple[Device, ...] = ()
        self._settled: Set[str] | None = None
        self._events: Events | None = None
        self._came: tuple[NvmlEvent, ...] = ()

    def events(self) -> tuple[NvmlEvent, ...]:
        """Those that came since this was last asked."""
        came, self._came = self._came, ()
        return came if self._events is None else came + self._events.take()

    def turn(self, turn: Turn) -> None:
        """Read everything that is due; afterwards `state`, `detail` and the devices say what came of it."""
        try:
            self._turn(turn, self._clock.now())
        except Exception:
            if not turn.left:
                log.exception("NVML cannot be read")
                self.close(inside=bool(turn.without))
                self.state, self.detail = PartState.FAILED, "a fault of the agent's own while reading NVML; see its log"

    def close(self, *, inside: bool = False) -> bool:
        """Give NVML back; False where a thread may be `inside` of it, whose state would be freed under it."""
        if not self.opened:
            return not inside
        self.opened = False
        self._owed += 1
        if not self._end_events() or inside:
            return False
        # NVML counts: it is over only after as many of these as there were beginnings.
        for _ in range(self._owed):
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._owed = 0
        return True

    def _end_events(self) -> bool:
        events, self._events = self._events, None
        if events is None:
            return True
        ended = events.end(EVENTS_END)
        self._came += events.take()
        return ended

    def _turn(self, turn: Turn, now: float) -> None:
        if not self.opened and now < self._retry_at and self._nodes() == self._nodes_seen:
            return
        if self.opened and now >= self._look_at and not turn.without and self._others(now):
            self.close()
        was_open = self.opened
        try:
            self._begin_and_read(turn, now)
        except NvmlEnded as error:
            if turn.left:
                return
            self._end(error, turn)
            if not was_open and error.code != VERSION_MISMATCH:
                self._say(error)
                return
            try:
                self._begin_and_read(turn, now)
            except NvmlEnded as again:
                if not turn.left:
                    self._end(again, turn)
                    self._say(again)

    def _others(self, now: float) -> bool:
        """Whether NVML should be begun anew: other GPUs are there, or a lost one may have come back."""
        self._look_at = now + FACTS_EVERY
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError:
            return True
        if self._nodes() != self._nodes_seen or count != len(self.devices):
            return True
        return now >= self._renew_at and any(device.lost for device in (*self.devices, *self.gone))

    def _begin_and_read(self, turn: Turn, now: float) -> None:
        if not self.opened:
            self._begin(turn, now)
        for device in self._each(turn):
            if not device.attached:
                device.attach(now)
        if not turn.left:
            self._settle()
        uuid_at = {device.facts.pci_bus: device.uuid for device in self.devices if device.facts.pci_bus is not None}
        for device in self._each(turn):
            device.read(now, uuid_at)
        if not turn.left:
            turn.device = None
            lost = sorted(device.index for device in (*self.devices, *self.gone) if device.lost)
            self.state = PartState.FAILED if lost else PartState.OK
            self.detail = f"GPU {', '.join(map(str, lost))} does not answer" if lost else ""

    def _each(self, turn: Turn) -> Iterator[Device]:
        """The GPUs of a turn, until it is left behind."""
        for device in self.devices:
            if turn.left:
                return
            if device not in turn.without:
                turn.ask(device)
                yield device

    def _begin(self, turn: Turn, now: float) -> None:
        self._retry_at, self._nodes_seen = now + self._retry, self._nodes()
        if self._nvml is None:
            try:
                self._nvml = nvml_library.load()
            except ImportError as error:
                raise NvmlEnded(LIBRARY_NOT_FOUND, "the Python package nvidia-ml-py is not installed") from error
        nvml = self._nvml
        try:
            turn.progress.call = "nvmlInit"
            nvml.nvmlInit()
            self.opened, self.unloaded = True, False
            turn.progress.call = "nvmlSystemGetDriverVersion"
            about, count = versions(nvml), nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise NvmlEnded(code_of(error), words(error)) from error
        self._look_at, self._renew_at, self.version = now + FACTS_EVERY, now + self._renew, about.driver
        self._before, self._settled = (*self.devices, *self.gone), None
        # The facts of all GPUs come now, and from then on those of a few at a time.
        self.devices = tuple(
            Device(nvml, index, about, facts_in=FACTS_EVERY * (index + 1) / count, lost_retry=self._lost_retry)
            for index in range(count)
        )
        self.gone = tuple(device for device in self._before if device.lost)

    def _settle(self) -> None:
        """Once other GPUs answer: keep those that were lost before and are gone, and follow the events of all."""
        handles = {device.uuid: device.handle for device in self.devices if device.handle is not None}
        if handles.keys() == self._settled:
            return
        self._settled = handles.keys()
        missing = [device for device in self._before if device.named and device.uuid not in handles]
        for device in self.devices:
            if device.handle is None:
                was = next((other for other in missing if other.index == device.index), None)
                if was is not None:
                    missing.remove(was)
                    device.remember(was.uuid, was.name, was.facts)
        self.gone = tuple(device for device in missing if device.lost)
        self._end_events()
        self._events = Events(self._nvml, handles, wait=self._event_wait)

    def _end(self, error: NvmlEnded, turn: Turn) -> None:
        if self.close(inside=bool(turn.without)) and error.code == VERSION_MISMATCH:
            nvml_library.drop(self._nvml)

    def _say(self, error: NvmlEnded) -> None:
        self.version, self.unloaded = "", error.code in _ABSENT
        if error.code in _ABSENT and not self.devices:
            self.state, self.detail = PartState.ABSENT, f"no NVIDIA driver on this host ({error})"
            return
        self.state = PartState.FAILED
        if error.code in _ABSENT:
            self.detail = f"the NVIDIA driver was unloaded ({error}); GPUs are read again once it is loaded"
        elif error.code == VERSION_MISMATCH:
            module = nvml_library.module_version()
            self.detail = (
                f"NVML's library is of another version than the loaded kernel module{f' {module}' if module else ''}: "
                "load the new module or reboot the host; if that was done, restart the agent (replicas go on)"
            )
        else:
            self.detail = f"NVML: {error}; nvidia-smi shows more"
