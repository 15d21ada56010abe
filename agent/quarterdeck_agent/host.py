"""Wires the agent of one host together and runs it: the only place that chooses an engine and imports drivers.

Every part gets what it needs passed in. When the agent ends, replicas and gateway go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from quarterdeck_agent import runtime_image
from quarterdeck_agent.api.access import LocalToken
from quarterdeck_agent.api.app import build
from quarterdeck_agent.api.guard import Bounds
from quarterdeck_agent.api.ports import Parts as ApiParts
from quarterdeck_agent.api.serve import Server, Serving
from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.board import Board
from quarterdeck_agent.catalogue import load as load_catalogue
from quarterdeck_agent.changes import Changes
from quarterdeck_agent.clock import Clock, SystemClock
from quarterdeck_agent.doctor import DoctorContext, examine
from quarterdeck_agent.drivers import probe
from quarterdeck_agent.drivers.base import Engine, Found, RoutingResources
from quarterdeck_agent.drivers.cgroup import CgroupReader
from quarterdeck_agent.drivers.docker import DockerEngine
from quarterdeck_agent.drivers.docker_inside import InsideLook
from quarterdeck_agent.drivers.docker_logs import DockerLogCollector
from quarterdeck_agent.drivers.envoy import EnvoyGateway
from quarterdeck_agent.drivers.envoy_process import find_binary
from quarterdeck_agent.drivers.gpu_driver import load_id
from quarterdeck_agent.drivers.host import HostReader, clock_synchronised
from quarterdeck_agent.drivers.nvml import NAME as NVML
from quarterdeck_agent.drivers.nvml import NvmlReader
from quarterdeck_agent.drivers.process import ProcessEngine
from quarterdeck_agent.drivers.processes import ProcessReader
from quarterdeck_agent.drivers.simulated import SimulatedEngine
from quarterdeck_agent.errors import AgentError, GatewayError
from quarterdeck_agent.gauges import Gauges
from quarterdeck_agent.gpus.placement import Sight, claims_of
from quarterdeck_agent.gpus.probe import GpuProbe
from quarterdeck_agent.gpus.records import GpuRecords
from quarterdeck_agent.gpus.sampler import GpuSampler, GpuSources
from quarterdeck_agent.gpus.torch_build import OwnTorch
from quarterdeck_agent.gpus.torch_check import check_gpus
from quarterdeck_agent.gpus.trust import Trust
from quarterdeck_agent.gpus.xids import load_xids
from quarterdeck_agent.handover import Capacity
from quarterdeck_agent.history import Minutes
from quarterdeck_agent.housekeeping import Housekeeper
from quarterdeck_agent.logs import LogStore
from quarterdeck_agent.metrics import exposition
from quarterdeck_agent.notify import Notifier
from quarterdeck_agent.observer import Memory, Observer
from quarterdeck_agent.performing import Performer
from quarterdeck_agent.protocol import Check, DeltaKind, Gpu, HostInfo, Part, PartState
from quarterdeck_agent.pushes import Pushes
from quarterdeck_agent.reconciler import Parts, Reconciler
from quarterdeck_agent.reporting import Reporter
from quarterdeck_agent.routing import Route, resources
from quarterdeck_agent.sampler import Sampler, Sources
from quarterdeck_agent.series import History
from quarterdeck_agent.settings import Prepared, Settings, prepare, private_folder
from quarterdeck_agent.store import Store

log = logging.getLogger(__name__)

RUNTIMES = Path(__file__).parent / "runtimes"
CAPABILITIES = ("deploy", "push", "logs", "watch", "plan")
DRAIN_LOGS = 5.0
FIRST_LOOK = 3.0
TELL_CHANGE = 0.5


async def run(settings: Settings, version: str) -> None:
    """Run the agent until SIGTERM or SIGINT."""
    _log_to_stderr(settings.log_level)
    prepared = await asyncio.to_thread(prepare, settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = Notifier()
    async with Host(settings, prepared, version, notifier) as host:
        notifier.ready(f"serving on {settings.socket}")
        log.info("answering on %s, models on %s", settings.socket, host.gateway.url)
        await host.until(stop)
        notifier.stopping()


async def choose_engine(settings: Settings, instance: str, clock: Clock) -> Engine:
    """The engine that was asked for; with `auto` docker where its daemon answers, else processes."""
    folder = settings.data_folder / "replicas"
    if settings.engine == "simulated":
        return SimulatedEngine(clock, serve=True)
    if settings.engine == "process":
        return ProcessEngine(folder, instance, clock)
    builders = {runtime_image.default_tag(): runtime_image.build}
    docker = DockerEngine(settings.docker_url, instance, clock, builders=builders)
    if settings.engine == "docker":
        return docker
    try:
        await docker.version()
    except AgentError as error:
        log.info("replicas run as processes: %s", error.detail)
        await docker.close()
        return ProcessEngine(folder, instance, clock)
    return docker


def make_gateway(settings: Settings) -> EnvoyGateway:
    """The gateway of these settings, not yet asked for anything."""
    return EnvoyGateway(
        settings.data_folder / "gateway",
        settings.envoy or find_binary(),
        settings.gateway_host,
        settings.gateway_port,
        concurrency=settings.gateway_concurrency,
        supervised=settings.gateway_supervised,
    )


def gateway_command(settings: Settings, *, write: bool = True) -> tuple[str, ...]:
    """The command that runs the gateway in the foreground; with `write`, what it needs is there afterwards."""
    if not write:
        return make_gateway(settings).command()
    private_folder(settings.data_folder)  # as the agent wants to find it: it may start after the gateway
    return make_gateway(settings).prepare()


class Host:
    """All parts of one agent, wired. Entering starts them, leaving ends them; replicas and gateway go on."""

    def __init__(self, settings: Settings, prepared: Prepared, version: str, notifier: Notifier) -> None:
        self._settings, self._prepared, self._version, self._notifier = settings, prepared, version, notifier
        self._clock = SystemClock()
        self._had_gpus = False  # a driver that is not loaded yet after a boot does not make it a host without GPUs
        self._examining_gpus = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.gateway = make_gateway(settings)

    async def __aenter__(self) -> Host:
        settings, clock = self._settings, self._clock
        self.store = await asyncio.to_thread(Store.open, settings.store_path, settings.data_folder / "backups", clock)
        self._had_gpus = bool(await asyncio.to_thread(self.store.gpu_memories))
        self.blobs = await asyncio.to_thread(Blobs, settings.data_folder, reserve=settings.min_free)
        self.logs = LogStore(settings.data_folder / "logs", clock, cap=settings.log_deployment_size)
        self.catalogue = load_catalogue(RUNTIMES, settings.data_folder / "runtimes")
        for problem in self.catalogue.problems:
            log.warning("a runtime was left out: %s", problem)
        self.engine = await choose_engine(settings, self._prepared.instance, clock)
        self.collector = self._collector()
        self.board = Board(self._info())
        self._wire()
        await self._ensure_gateway()
        self._tasks = [
            asyncio.create_task(work(), name=name)
            for name, work in (
                ("observer", self.observer.run),
                ("reconciler", self.reconciler.run),
                ("sampler", self.sampler.run),
                ("GPU sampler", self.gpus.run),
                ("housekeeper", self._housekeeper().run),
                *self._gpu_probe(),
            )
        ]
        await self._first_look()
        await self.server.start()
        return self

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`. A loop that ends on its own is a fault: it is raised, and systemd starts the agent anew."""
        waiting = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({waiting, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in done - {waiting}:
            task.result()
            raise RuntimeError(f"the {task.get_name()} ended")

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.collector is not None:
            await asyncio.to_thread(self.collector.close)
        await self.engine.close()
        await self.gateway.close()
        await asyncio.to_thread(self.gauges.close)
        self.logs.close()
        await asyncio.to_thread(self.store.close)

    # --- wiring ------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        settings, clock = self._settings, self._clock
        loop = asyncio.get_running_loop()
        self.changes = Changes(
            self.store, self.catalogue, self.engine.name, self._capacity, self._telling(loop), OwnTorch().build
        )
        self.observer = Observer(
            self.engine,
            self.gateway,
            clock,
            probe.ready,
            self._health_path,
            self._memory,
            self._sight,
            self._wake,
            listed=self._listed,
            interval=settings.probe_interval,
            deadline=settings.probe_deadline,
        )
        self.reporter = Reporter(
            self.board, self.store, self.observer, self.changes.recipe, clock, self.gateway.url, self.engine.name
        )
        self.reconciler = Reconciler(
            Parts(
                store=self.store,
                gateway=self.gateway,
                observer=self.observer,
                performer=self._performer(),
                reporter=self.reporter,
                clock=clock,
                configuration=self._configuration,
                alive=self._notifier.alive,
            )
        )
        self.gauges = Gauges(
            clock,
            Minutes(settings.history_path, days=settings.history_days, size=settings.history_size),
            hour=History(step=settings.sample_interval),
        )
        self.gpus = self._gpu_sampler()
        self.sampler = self._sampler()
        self.server = self._server(loop)

    def _housekeeper(self) -> Housekeeper:
        return Housekeeper(self.store, self.blobs, self.logs, self.observer.found, self.observer.unstaged)

    def _gpu_sampler(self) -> GpuSampler:
        sources = GpuSources(
            nvml=NvmlReader(),
            processes=ProcessReader(),
            replicas=self.observer.found,
            keep=self.store.record_gpu_memory,
            judge=GpuRecords(self.store, load_xids(), self._clock, load_id),
            labels=dict(self._settings.gpu_labels),
        )
        interval = self._settings.sample_interval
        return GpuSampler(self.board, sources, self._clock, interval=interval, had_gpus=self._had_gpus)

    def _sampler(self) -> Sampler:
        sources = Sources(
            host=HostReader(self._settings.data_folder, self._clock),
            cgroups=CgroupReader(),
            gateway=self.gateway,
            replicas=self.observer.found,
            gpu_memory=self.gpus.memory,
        )
        interval = self._settings.sample_interval
        return Sampler(self.board, sources, self._clock, interval=interval, gauges=self.gauges)

    def _gpu_probe(self) -> tuple[tuple[str, Callable[[], Coroutine[Any, Any, None]]], ...]:
        """Only containers can lose their GPUs while the host has them."""
        if not isinstance(self.engine, DockerEngine):
            return ()
        inside = InsideLook(self._settings.docker_url)
        probing = GpuProbe(lambda found: inside.gpu_lost(found.handle), self.observer.found, self.observer.gpu_lost)
        return (("GPU probe", probing.run),)

    def _performer(self) -> Performer:
        return Performer(
            store=self.store,
            engine=self.engine,
            stage=self._stage,
            recipes=self.reporter.recipe,
            seen=self.observer,
            clock=self._clock,
            logs_folder=self._settings.data_folder / "logs",
            last_lines=self._last_lines,
            report=self.reporter.progress,
            ask_golden=probe.golden,
            ask_facts=probe.facts,
            before_removal=self._save_logs,
        )

    def _server(self, loop: asyncio.AbstractEventLoop) -> Server:
        settings = self._settings
        parts = ApiParts(
            board=self.board,
            changes=self.changes,
            pushes=Pushes(self.store, self.blobs, self.catalogue, self._clock, self._telling(loop)),
            records=self.store,
            blobs=self.blobs,
            logs=self.logs,
            catalogue=self.catalogue,
            series=self.gauges,
            gpus=Trust(self.store, lambda: self._all("gpu"), lambda: self._all("gpu_facts"), self._telling(loop)),
            doctor=self._examine,
            gpu_doctor=self._examine_gpus,
            metrics=self._metrics,
            upload_size=settings.upload_size,
        )
        app = build(parts, LocalToken(self._prepared.token), Bounds(settings.body_size, settings.body_idle))
        serving = Serving(settings.connections, settings.header_deadline, shutdown=settings.shutdown)
        return Server(app, settings.socket, parts.stop, serving)

    def _metrics(self) -> bytes:
        return exposition(self.board.status(), self._all("revision"), claims_of(self.observer.found()))

    def _collector(self) -> DockerLogCollector | None:
        if not isinstance(self.engine, DockerEngine):
            return None
        return DockerLogCollector(
            self._settings.docker_url,
            lambda found: self.logs.replica_folder(found.deployment, found.revision, found.id),
            file_size=self._settings.log_file_size,
            file_count=self._settings.log_files,
        )

    async def _first_look(self) -> None:
        """Let the board know this host before anybody asks. An engine that hangs keeps nobody waiting for long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.reconciler.looked.wait(), FIRST_LOOK)

    async def _ensure_gateway(self) -> None:
        """Without its gateway the agent still runs and tells why; the observer tries again."""
        try:
            await self.gateway.ensure()
        except AgentError as error:
            log.error("the gateway does not run: %s %s", error.detail, error.hint or "")

    async def _examine(self) -> tuple[Check, ...]:
        context = DoctorContext(
            data_folder=self._settings.data_folder,
            engine=self.engine,
            gateway=self._gateway_version,
            sqlite_version=self.store.sqlite_version,
            min_free=self._settings.min_free,
            nvml=lambda: self.board.get("part", NVML),
            gauges=lambda: self.board.get("gauges"),
            clock_synchronised=clock_synchronised,
            history=self.gauges.minutes,
            sight=self._sight,
            docker_info=self.engine.info if isinstance(self.engine, DockerEngine) else None,
        )
        return await examine(context)

    async def _examine_gpus(self) -> tuple[Check, ...]:
        async with self._examining_gpus:  # two at once would time each other
            return await check_gpus(self._sight().gpus)

    async def _gateway_version(self) -> str:
        version = (await self.gateway.observe()).version
        part = self.observer.parts.get("gateway")
        if part is not None and part.state is PartState.FAILED:
            hint = "Free the address, or set gateway.port." if "bind" in part.detail else None
            raise GatewayError(part.detail, hint=hint)
        return f"{version}, models on {self.gateway.url}"

    # --- what parts ask for ------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.reconciler.wake()

    def _telling(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Has a change carried out and waits until the board tells of it: who changed something and looks, sees it.

        Called in any thread but the loop's own.
        """

        def tell() -> None:
            telling = asyncio.run_coroutine_threadsafe(self.reconciler.told(), loop)
            with contextlib.suppress(TimeoutError, CancelledError):
                telling.result(TELL_CHANGE)

        return tell

    def _configuration(self, routes: tuple[Route, ...]) -> RoutingResources:
        return resources(
            routes,
            host=self._settings.gateway_host,
            port=self._settings.gateway_port,
            access_log=self.gateway.access_log,
            placeholder=self.gateway.placeholder,
            own_names=(socket.gethostname(),),
        )

    async def _stage(self, version: str) -> Path:
        found = await asyncio.to_thread(self.store.version, version)
        return await asyncio.to_thread(self.blobs.stage, found)

    async def _last_lines(self, deployment: str, revision: int, replica: str, count: int) -> tuple[str, ...]:
        return await asyncio.to_thread(self.logs.last_lines, deployment, revision, replica, count)

    async def _save_logs(self, found: Found) -> None:
        if self.collector is not None:
            await asyncio.to_thread(self.collector.drained, found.handle, DRAIN_LOGS)

    async def _health_path(self, found: Found) -> str:
        """Where a replica is asked whether it is ready; its root when nobody knows its revision any more."""
        wanted = await asyncio.to_thread(self.store.deployment, found.deployment)
        for revision in (wanted.target, wanted.live, wanted.previous) if wanted else ():
            if revision is not None and revision.body == found.body:
                recipe = await asyncio.to_thread(self.reporter.recipe, revision)
                return recipe.launch.health_path
        return "/"

    def _listed(self, replicas: tuple[Found, ...]) -> None:
        if self.collector is not None:
            self.collector.update(replicas)

    def _memory(self) -> Memory:
        gauges = self.board.get("gauges")
        if gauges is None or gauges.memory_total is None or gauges.memory_used is None:
            return Memory()
        return Memory(gauges.memory_total, gauges.memory_total - gauges.memory_used)

    def _sight(self) -> Sight:
        """The GPUs as the sampler told of them last; with trouble while that may not be so any more."""
        gpus = tuple(sorted(self.board.all("gpu").values(), key=lambda gpu: (gpu.index, gpu.uuid)))
        uses, facts = tuple(self.board.all("gpu_use").values()), tuple(self.board.all("gpu_facts").values())
        part = self.board.get("part", NVML)
        self._had_gpus = self._had_gpus or bool(gpus)
        if self._had_gpus and part is not None and part.state is PartState.ABSENT:
            return Sight(gpus, uses, facts, "the driver of the GPUs is gone; it may be being loaded again")
        return Sight(gpus, uses, facts, nvml_trouble(part, gpus))

    def _all(self, kind: DeltaKind) -> tuple[Any, ...]:
        return tuple(self.board.all(kind).values())

    def _capacity(self) -> Capacity:
        memory, claims = self._memory(), claims_of(self.observer.found())
        known = {claim.replica for claim in claims}
        promised = tuple(claim for claim in self.reconciler.promised if claim.replica not in known)
        return Capacity(memory.total, memory.available, self._sight(), claims + promised)

    def _info(self) -> HostInfo:
        system = os.uname()
        return HostInfo(
            name=socket.gethostname(),
            instance=self._prepared.instance,
            agent_version=self._version,
            os=platform.freedesktop_os_release().get("PRETTY_NAME", system.sysname),
            kernel=system.release,
            architecture=system.machine,
            cpus=os.cpu_count() or 1,
            memory_total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            boot_id=self._clock.boot_id,
            started_at=self._clock.wall(),
            engine=self.engine.name,
            gateway_url=self.gateway.url,
            data_folder=str(self._settings.data_folder),
        )


def nvml_trouble(part: Part | None, gpus: Sequence[Gpu]) -> str:
    """Why what is known of the GPUs cannot be trusted now. Without a driver it can: then there are none.

    NVML that answers for some GPUs can be trusted for these; the others are lost or say why they are not well.
    """
    if part is None:
        return "the GPUs have not been looked at yet"
    answers = bool(part.version) and any(gpu.memory_total is not None for gpu in gpus)
    if part.state in (PartState.OK, PartState.ABSENT) or answers:
        return ""
    return f"the GPUs cannot be seen now: {part.detail or part.state.value}"


def _log_to_stderr(level: str) -> None:
    """One line a record, with the time where nobody else (journald) adds it."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=level.upper(), format=f"{stamp}%(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "uvicorn", "docker", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
