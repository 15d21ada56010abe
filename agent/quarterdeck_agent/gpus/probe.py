"""Looks now and then from inside of the replicas that use GPUs whether they still have them. It only tells.

One look at a time, in a thread of its own: an engine or a driver that hangs makes this wait and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from quarterdeck_agent.drivers.base import Found, Life

log = logging.getLogger(__name__)

INTERVAL = 30.0
SURE_AFTER = 2.0
"""Seconds after which a replica that seems to have lost its GPUs is asked once more: it will be replaced for it."""


class GpuProbe:
    """Asks every running replica with GPUs every `interval` seconds until cancelled.

    `look` gives the reason why a replica's GPUs are lost, empty where they are not, and may block for some seconds.
    `tell` gets what was found, `replicas` gives the last inventory.
    """

    def __init__(
        self,
        look: Callable[[Found], str],
        replicas: Callable[[], Sequence[Found]],
        tell: Callable[[Found, str], None],
        *,
        interval: float = INTERVAL,
        sure_after: float = SURE_AFTER,
    ) -> None:
        self._look, self._replicas, self._tell = look, replicas, tell
        self._interval, self._sure_after = interval, sure_after

    async def run(self) -> None:
        """Probe until cancelled."""
        threads = ThreadPoolExecutor(1, thread_name_prefix="gpu-probe")
        try:
            while True:
                for found in self._replicas():
                    if found.gpus and found.life is Life.RUNNING:
                        self._tell(found, await self._ask(found, threads))
                await asyncio.sleep(self._interval)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, found: Found, threads: ThreadPoolExecutor) -> str:
        loop = asyncio.get_running_loop()
        try:
            lost = await loop.run_in_executor(threads, self._look, found)
            if lost:
                await asyncio.sleep(self._sure_after)
                lost = await loop.run_in_executor(threads, self._look, found)
        except Exception:
            log.exception("looking into replica %s failed", found.id)
            return ""
        if lost:
            log.warning("replica %s has lost its GPUs: %s", found.id, lost)
        return lost
