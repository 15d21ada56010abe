"""The docker engine: replicas as containers, remembered in their labels, through Docker's SDK in threads.

Every call has a deadline; while one hangs, the others fail at once instead of piling up threads. A container is started
only after its inspection agrees with what was asked, and stopped or removed only when it is provably ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers import cgroup_folders, container, gpu_door, image
from quarterdeck_agent.drivers.base import Foreign, Found, Inventory, Life, Progress, ReplicaSpec, Report
from quarterdeck_agent.errors import EngineError, EngineUnresponsive, StartRefused
from quarterdeck_agent.failpoints import failpoint

CALL_DEADLINE = 10.0
START_DEADLINE = 60.0
PULL_DEADLINE = 3600.0
PULL_SILENCE = 120.0
THREADS = 32
HTTP_CONFLICT = 409

Json = dict[str, Any]
T = TypeVar("T")

LIVES = {"created": Life.CREATED, "running": Life.RUNNING, "paused": Life.RUNNING, "restarting": Life.RUNNING}


class DockerEngine:
    """Runs replicas as containers of the daemon at `base_url` (`unix:///var/run/docker.sock`).

    `builders` make the images that no registry has: by the image's name, called with (base_url, name, report) in a
    thread when such an image is asked for and absent.
    """

    name = "docker"

    def __init__(
        self,
        base_url: str,
        instance: str,
        clock: Clock,
        *,
        deadline: float = CALL_DEADLINE,
        builders: Mapping[str, Callable[[str, str, Report], object]] | None = None,
    ) -> None:
        self._builders = builders or {}
        self._base_url, self._instance, self._clock, self._deadline = base_url, instance, clock, deadline
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._making = threading.Lock()
        self._making_network = threading.Lock()
        self._clients: dict[float, docker.APIClient] = {}
        self._late: set[Future[Any]] = set()
        self._seen: dict[str, tuple[object, Found]] = {}
        self._labelled: dict[str, bool] = {}
        self._network_known = False

    async def version(self) -> str:
        told = await self._call("tell its version", lambda: self._client().version(), self._deadline)
        return f"Docker {told['Version']} (API {told['ApiVersion']})"

    async def inventory(self) -> Inventory:
        return await self._call("list the containers", self._inventory, self._deadline)

    async def resolve(self, image: str, report: Report) -> str:
        loop, abandoned = asyncio.get_running_loop(), threading.Event()

        def tell(progress: Progress) -> None:
            if abandoned.is_set():
                # Nobody waits any more: this ends the pull's thread, and the daemon keeps the layers it has.
                raise EngineError(f"The pull of {image} was given up.", field="image")
            loop.call_soon_threadsafe(report, progress)

        try:
            return await self._call(f"resolve {image}", lambda: self._resolve(image, tell), PULL_DEADLINE)
        finally:
            abandoned.set()

    async def start(self, spec: ReplicaSpec) -> Found:
        return await self._call(f"start {spec.id}", lambda: self._start(spec), START_DEADLINE)

    async def stop(self, found: Found, grace: float) -> None:
        await self._call(f"stop {found.id}", lambda: self._stop(found, grace), grace + 2 * self._deadline)

    async def remove(self, found: Found) -> None:
        await self._call(f"remove {found.id}", lambda: self._remove(found), 2 * self._deadline)

    async def info(self) -> dict[str, Any]:
        """What the daemon tells of itself (`GET /info`)."""
        return await self._call("tell of itself", lambda: dict(self._client().info()), self._deadline)

    async def close(self) -> None:
        """Let go of sockets and threads; the network goes too when nothing of ours is left on it."""
        if self._network_known and not self._late:
            with contextlib.suppress(EngineError):
                await self._call("remove its network", self._remove_empty_network, min(self._deadline, 3.0))
        await asyncio.to_thread(self._threads.shutdown, wait=not self._late, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    # --- calls -------------------------------------------------------------------------------------------------

    async def _call(self, what: str, work: Callable[[], T], deadline: float) -> T:
        self._late = {future for future in self._late if not future.done()}
        if self._late:
            raise EngineUnresponsive(f"Docker at {self._base_url} did not {what}: an earlier call still hangs.")
        future = self._threads.submit(functools.partial(self._guarded, what, work))
        try:
            async with asyncio.timeout(deadline):  # wait_for loses a cancellation that comes with the answer
                return await asyncio.wrap_future(future)
        except TimeoutError:
            self._late.add(future)
            raise EngineUnresponsive(
                f"Docker at {self._base_url} did not {what} within {deadline:g} s.",
                hint="Look at the daemon: systemctl status docker, journalctl -u docker.",
            ) from None

    def _guarded(self, what: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except (requests.ConnectionError, requests.Timeout) as error:
            raise EngineUnresponsive(
                f"Docker at {self._base_url} could not be asked to {what}: {innermost(error)}",
                hint="Is the daemon running, and may this user open its socket?",
            ) from error
        except APIError as error:
            raise EngineError(f"Docker could not {what}: {error.explanation or error}") from error
        except DockerException as error:
            if isinstance(error.__cause__ or error.__context__, requests.ConnectionError):
                raise EngineUnresponsive(f"Docker at {self._base_url} cannot be reached: {error}") from error
            raise EngineError(f"Docker could not {what}: {error}") from error

    def _client(self, timeout: float | None = None) -> docker.APIClient:
        """One client a read timeout. The SDK gives up a little before its caller, so that the thread comes free."""
        timeout = self._deadline * 0.9 if timeout is None else timeout
        with self._making:
            if timeout not in self._clients:
                self._clients[timeout] = docker.APIClient(
                    base_url=self._base_url, version="auto", timeout=timeout, max_pool_size=THREADS
                )
            return self._clients[timeout]

    # --- what is there -----------------------------------------------------------------------------------------

    def _inventory(self) -> Inventory:
        rows = self._client().containers(all=True, filters={"label": container.REPLICA})
        replicas, foreign = [], []
        for row in rows:
            doubt = self._doubt(row)
            if doubt:
                foreign.append(Foreign(row["Id"], f"{' '.join(row.get('Names') or ())} {doubt}"))
            elif found := self._from_row(row):
                replicas.append(found)
        listed = {row["Id"] for row in rows}
        self._seen = {key: value for key, value in self._seen.items() if key in listed}
        return Inventory(tuple(replicas), tuple(foreign))

    def _doubt(self, row: Json) -> str | None:
        names, mode = tuple(row.get("Names") or ()), (row.get("HostConfig") or {}).get("NetworkMode", "")
        doubt = container.doubt(names, row.get("Labels") or {}, mode, self._instance)
        if doubt is None and self._carries_our_labels(row["ImageID"]):
            return "has our labels from its image"
        return doubt

    def _carries_our_labels(self, image_id: str) -> bool:
        """Whether the image itself sets labels in our name space: then a container's labels prove nothing."""
        if image_id not in self._labelled:
            try:
                config = self._client().inspect_image(image_id).get("Config") or {}
            except ImageNotFound:
                # Untagged and deleted under a running container; we refuse such images at the start.
                return False
            self._labelled[image_id] = bool(container.ours(config.get("Labels") or {}))
        return self._labelled[image_id]

    def _from_row(self, row: Json) -> Found | None:
        """Inspect only what is new or changed: one list call is all that a steady host costs."""
        key = (row["State"], address_in(row.get("NetworkSettings") or {}, self._instance))
        known = self._seen.get(row["Id"])
        if known and known[0] == key and (known[1].life is not Life.RUNNING or same_processes(known[1])):
            return known[1]
        try:
            found = self._describe(self._client().inspect_container(row["Id"]))
        except NotFound:
            return None
        self._seen[row["Id"]] = (key, found)
        return found

    def _describe(self, made: Json) -> Found:
        values, state = made["Config"]["Labels"], made["State"]
        life = LIVES.get(state["Status"], Life.EXITED)
        address = address_in(made.get("NetworkSettings") or {}, self._instance)
        port = int(values[container.PREFIX + "port"])
        code = state.get("ExitCode") if life is Life.EXITED else None
        killed = code is not None and 128 < code <= 128 + 64
        groups = cgroup_folders.of_process(state["Pid"]) if state.get("Pid") else {}
        claim = values.get(container.CLAIM, "")
        # A daemon in another machine or pid name space gives pids that mean somebody else here.
        ours = any(made["Id"] in str(path) for path in groups.values())
        began = cgroup_folders.started(state["Pid"]) if ours else None
        return Found(
            id=values[container.REPLICA],
            deployment=values[container.PREFIX + "deployment"],
            revision=int(values[container.PREFIX + "revision"]),
            body=values[container.PREFIX + "body"],
            version=values[container.PREFIX + "version"],
            handle=made["Id"],
            life=life,
            address=(address, port) if address else None,
            # Docker stamps by the wall clock, which may have jumped since: the kernel's word counts where it has one.
            started=began or (self._since_boot(state.get("StartedAt")) if life is not Life.CREATED else None),
            ended=self._since_boot(state.get("FinishedAt")) if life is Life.EXITED else None,
            exit_code=None if killed else code,
            signal=code - 128 if killed and code is not None else None,
            out_of_memory=bool(state.get("OOMKilled")) and life is Life.EXITED,
            reason=state.get("Error") or "",
            gpus=tuple(filter(None, values[container.PREFIX + "gpus"].split(","))),
            cgroups=groups if ours else {},
            pids=(state["Pid"],) if state.get("Pid") else (),
            vram=int(claim) if claim.isdecimal() else None,
            exclusive=claim == "whole",
        )

    def _since_boot(self, told: str | None) -> float | None:
        """Docker's wall-clock stamp on our clock; `None` for its zero time or a moment before this boot."""
        if not told or told.startswith("0001-"):
            return None
        moment = datetime.fromisoformat(re.sub(r"\.(\d{1,6})\d*", r".\1", told).replace("Z", "+00:00"))
        seconds = self._clock.now() - (self._clock.wall() - moment).total_seconds()
        return seconds if seconds >= 0 else None

    # --- start -------------------------------------------------------------------------------------------------

    def _resolve(self, name: str, report: Report) -> str:
        if name in self._builders and image.find(self._client(), name) is None:
            self._builders[name](self._base_url, name, report)
        return image.resolve(self._client(), self._client(PULL_SILENCE), name, report)

    def _start(self, spec: ReplicaSpec) -> Found:
        there = self._inspect(container.container_name(spec.id))
        if there is None:
            there = self._create(spec)
        else:
            self._prove(there)
        if there["State"]["Status"] != "created":
            return self._describe(there)
        self._check(spec, there)
        failpoint("engine.created")
        self._run(spec, there)
        failpoint("engine.ran")
        return self._describe(self._client().inspect_container(there["Id"]))

    def _create(self, spec: ReplicaSpec) -> Json:
        client = self._client(START_DEADLINE * 0.9)
        self._ensure_network()
        asked = self._asked(spec)
        try:
            made = client.create_container_from_config(asked, container.container_name(spec.id))
        except APIError as error:
            if error.status_code == HTTP_CONFLICT:
                return self._made_by_another(spec, error)
            if not isinstance(error, ImageNotFound):
                raise
            raise StartRefused(
                f"Image {spec.image} is not on this host.", field="image", hint="Deploy again: that pulls it."
            ) from error
        inspected: Json = client.inspect_container(made["Id"])
        return inspected

    def _made_by_another(self, spec: ReplicaSpec, refusal: APIError) -> Json:
        """The container that took our name while we asked: the daemon shows it a moment after it reserved the name."""
        deadline = time.monotonic() + self._deadline
        while (there := self._inspect(container.container_name(spec.id))) is None:
            if time.monotonic() > deadline:
                raise refusal
            time.sleep(0.05)
        self._prove(there)
        return there

    def _asked(self, spec: ReplicaSpec) -> Json:
        """The request for a container, with GPUs in the way that this daemon gives them."""
        way = gpu_door.door(self._client().info()) if spec.gpus else "nvidia"
        return container.configuration(spec, self._instance, self._volumes(spec), way)

    def _volumes(self, spec: ReplicaSpec) -> tuple[str, ...]:
        """The volumes that the image declares. An image with labels of ours is refused: it could pose as a replica."""
        if not spec.image:
            raise StartRefused(f"Replica {spec.id} names no image, and the docker engine needs one.", field="image")
        config = (image.find(self._client(), spec.image) or {}).get("Config") or {}
        if container.ours(config.get("Labels") or {}):
            raise StartRefused(
                f"Image {spec.image} sets labels that begin with {container.PREFIX!r}.",
                field="image",
                hint="Build it without them: they are how the agent knows its own containers.",
            )
        return tuple(sorted(config.get("Volumes") or ()))

    def _check(self, spec: ReplicaSpec, made: Json) -> None:
        """Remove and refuse a container that is not what was asked, whoever changed it on the way."""
        wrong = container.differences(self._asked(spec), made)
        if wrong:
            self._discard(made["Id"])
            raise StartRefused(
                f"Docker made something else of replica {spec.id} than was asked: {', '.join(wrong)}.",
                field=wrong[0],
                hint="Look for authorization plugins, proxies and daemon defaults that change containers.",
            )

    def _run(self, spec: ReplicaSpec, made: Json) -> None:
        try:
            self._client(START_DEADLINE * 0.9).start(made["Id"])
        except APIError as error:
            self._discard(made["Id"])
            why = str(error.explanation or error)
            field = "gpus" if spec.gpus and "device" in why else "command"
            raise StartRefused(f"Replica {spec.id} could not be started: {why}", field=field) from error

    def _discard(self, name: str) -> None:
        try:
            self._client().remove_container(name, v=True, force=True)
        except NotFound:
            return

    def _ensure_network(self) -> None:
        # Docker makes two networks of one name for two who ask at once.
        with self._making_network:
            self._make_or_check_network()

    def _make_or_check_network(self) -> None:
        name = container.network_name(self._instance)
        client = self._client()
        if self._network_known and client.networks(names=[name]):
            return
        asked = container.network(self._instance)
        try:
            told = client.inspect_network(name)
        except NotFound:
            client.create_network(
                name, asked["Driver"], options=asked["Options"], labels=asked["Labels"], check_duplicate=True
            )
            told = client.inspect_network(name)
        for key in ("Driver", "Options", "Labels"):
            if told.get(key) != asked[key]:
                raise StartRefused(
                    f"Network {name} exists and its {key} is not as the agent makes it.",
                    field="network",
                    hint=f"Remove it: docker network rm {name}",
                )
        self._network_known = True

    def _remove_empty_network(self) -> None:
        if self._inventory().replicas:
            return
        try:
            self._client().remove_network(container.network_name(self._instance))
        except APIError:
            # Something is attached to it after all, or somebody was faster.
            return

    # --- end ---------------------------------------------------------------------------------------------------

    def _inspect(self, name: str) -> Json | None:
        try:
            made: Json = self._client().inspect_container(name)
        except NotFound:
            return None
        return made

    def _prove(self, made: Json) -> None:
        """Raise for a container that is not ours beyond doubt."""
        mode = made["HostConfig"].get("NetworkMode", "")
        doubt = container.doubt((made["Name"],), made["Config"].get("Labels") or {}, mode, self._instance)
        if doubt is None and self._carries_our_labels(made["Image"]):
            doubt = "has our labels from its image"
        if doubt:
            raise StartRefused(
                f"Container {made['Name']} {doubt}; it was left alone.",
                field="id",
                hint=f"Remove it by hand if nobody needs it: docker rm {made['Id'][:12]}",
            )

    def _stop(self, found: Found, grace: float) -> None:
        made = self._inspect(found.handle)
        if made is None or made["State"]["Status"] in ("exited", "dead", "created"):
            return
        self._prove(made)
        try:
            # The SDK adds the grace to the client's own timeout.
            self._client().stop(found.handle, timeout=math.ceil(max(grace, 0)))
        except NotFound:
            return
        deadline = time.monotonic() + self._deadline
        while (made := self._inspect(found.handle)) and made["State"]["Running"]:
            if time.monotonic() > deadline:
                raise EngineUnresponsive(f"Container {found.handle[:12]} of replica {found.id} does not end.")
            time.sleep(0.05)

    def _remove(self, found: Found) -> None:
        made = self._inspect(found.handle)
        if made is None:
            return
        self._prove(made)
        if made["State"]["Running"]:
            raise EngineError(f"Replica {found.id} runs and cannot be removed.", hint="Stop it first.")
        try:
            self._client().remove_container(found.handle, v=True)
        except NotFound:
            return


def address_in(settings: Json, instance: str) -> str | None:
    """The container's address on the agent's own network; `None` while it has none."""
    joined = (settings.get("Networks") or {}).get(container.network_name(instance)) or {}
    return joined.get("IPAddress") or None


def same_processes(found: Found) -> bool:
    """Whether a running container still has the main process it had; unknown counts as yes."""
    return not found.cgroups or all(Path(f"/proc/{pid}").exists() for pid in found.pids)


def innermost(error: BaseException) -> str:
    """The system's own words inside what urllib3 and requests wrapped around them."""
    reason: BaseException = error
    while (inner := reason.__cause__ or reason.__context__) is not None:
        reason = inner
    return str(reason) or type(reason).__name__
