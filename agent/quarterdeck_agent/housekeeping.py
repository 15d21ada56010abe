"""Tidies the data folder at leisure: bytes of removed versions, logs beyond their cap, and a look for damaged blobs.

Deletes only what the store can prove to be unwanted. Every chore fails on its own and is tried again next time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.drivers.base import Found
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.logs import LogStore
from quarterdeck_agent.store import Store

log = logging.getLogger(__name__)

EVERY = 600.0
SCRUB_EVERY = 7 * 86400.0


@dataclass(slots=True)
class Housekeeper:
    """Runs the chores every ten minutes, and reads every blob anew once a week.

    `replicas` gives those the engine last told of, `unstaged` is told of each version whose folder went.
    """

    store: Store
    blobs: Blobs
    logs: LogStore
    replicas: Callable[[], tuple[Found, ...]]
    unstaged: Callable[[str], None]
    every: float = EVERY
    _until_scrub: float = SCRUB_EVERY

    async def run(self) -> None:
        """Tidy until cancelled."""
        while True:
            await asyncio.sleep(self.every)
            for chore in (self.free_versions, self.prune_logs, self.scrub):
                await self._try(chore)

    async def _try(self, chore: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(chore)
        except (AgentError, OSError) as error:
            log.warning("%s: %s", chore.__name__, error)

    def free_versions(self) -> None:
        """Free what only removed versions needed, unless a replica still runs from it."""
        kept = self.store.versions()
        running = {found.version for found in self.replicas()}
        for staged in self.blobs.staged() - {version.id for version in kept} - running:
            self.blobs.unstage(staged)
            self.unstaged(staged)
        freed = self.blobs.collect({file.sha256 for version in kept for file in version.files})
        if freed:
            log.info("freed %d MiB of removed versions", freed >> 20)

    def prune_logs(self) -> None:
        """Keep each deployment's logs under their cap, removed ones' too; the revisions in use stay."""
        running: dict[str, set[int]] = {}
        for found in self.replicas():
            running.setdefault(found.deployment, set()).add(found.revision)
        for name in self.logs.deployments():
            d = self.store.deployment(name)
            wanted = {r.number for r in (d.target, d.live, d.previous) if r is not None} if d else set()
            self.logs.prune(name, wanted | running.get(name, set()))

    def scrub(self) -> None:
        """Read every blob and tell of those that are not what they were."""
        self._until_scrub -= self.every
        if self._until_scrub > 0:
            return
        self._until_scrub = SCRUB_EVERY
        for damaged in self.blobs.scrub():
            log.error("blob %s is damaged: push its version again", damaged[:12])
