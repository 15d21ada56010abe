"""The HTTP server around one model: LitServe's server, its request handling and its worker loop, in one process.

LitServe by itself runs a manager process, a spawned worker per device and a forked HTTP process, and its batching
loop polls a queue every millisecond. A replica here is one model on one device: the worker is a thread, queues are
in memory and waiting costs nothing, so that a replica is one process to start, to measure and to kill, needs no
shared memory and leaves no orphan. Other than that the parts are LitServe's own extension points: an API, a spec with
endpoints, a loop, a transport.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from platform import python_version
from typing import Any

from fastapi import Request, Response
from litserve import LitServer
from litserve.callbacks import CallbackRunner
from litserve.loops import inference_worker
from litserve.server import response_queue_to_buffer
from litserve.utils import WorkerSetupStatus
from starlette.exceptions import HTTPException

from quarterdeck_runtime import models, threads
from quarterdeck_runtime.bundle import Bundle
from quarterdeck_runtime.errors import BundleError
from quarterdeck_runtime.paths import OpenInference, json_answer
from quarterdeck_runtime.worker import InProcess, ModelAPI

MODEL_FAILED = 1
BUNDLE_WRONG = 2


class Server(LitServer):  # type: ignore[misc]
    """LitServe's server with its worker on a thread of this process."""

    def __init__(self, api: ModelAPI, device: str, bundle: Bundle) -> None:
        # The device is the worker's affair; naming the accelerator keeps LitServe from running nvidia-smi.
        super().__init__(
            api, accelerator="cpu", timeout=False, max_payload_size=bundle.max_body, disable_openapi_url=True
        )
        self._api = api
        self._device = device
        self._transport = InProcess()
        self.devices = [device]
        self.app.response_queue_id = 0
        self.workers_setup_status = {f"{api.api_path.split('/')[-1]}_0": WorkerSetupStatus.STARTING}
        self.litapi_request_queues: dict[str, queue.SimpleQueue[Any]] = {api.api_path: queue.SimpleQueue()}
        self.app.add_exception_handler(HTTPException, _as_problem)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        self._transport.bind()
        answers = asyncio.create_task(
            response_queue_to_buffer(self._transport, self.response_buffer, 0, self.litapi_connector)
        )
        yield
        answers.cancel()

    def start_worker(self) -> None:
        """Load the model and answer requests on a thread. A model that is lost ends the process."""
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def _work(self) -> None:
        path = self._api.api_path
        jobs = self.litapi_request_queues[path]
        states = self.workers_setup_status
        try:
            inference_worker(self._api, self._device, 0, jobs, self._transport, states, CallbackRunner(), False)
        except BaseException:  # noqa: BLE001 - the edge of the worker's loop: told, then the process ends
            traceback.print_exc()
        leave(MODEL_FAILED)


def leave(code: int) -> None:
    """End the process at once: threads of a library must not delay that."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _as_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail: Any = error.detail
    response = json_answer(detail if isinstance(detail, dict) else {"error": str(detail)}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def build(bundle: Bundle, name: str, threads_wanted: int, began: float) -> Server:
    """The server of one bundle under one name; its model is loaded by `start_worker`.

    `began` is the moment the process started on `time.monotonic`, for the line that tells how long loading took.
    """
    device = models.choose_device(bundle.device)
    label = f"{bundle.name}:{bundle.version}"
    facts = {"python": python_version(), "device": device, "threads": threads_wanted, "model": label}

    def loaded(problem: BaseException | None) -> None:
        if problem is not None:
            _tell(problem)
            leave(BUNDLE_WRONG if isinstance(problem, BundleError) else MODEL_FAILED)
        threads.apply(threads_wanted)
        took = time.monotonic() - began
        print(f"{label} is ready after {took:.1f} s: {bundle.runtime}, {device}, threads {threads_wanted}", flush=True)  # noqa: T201

    spec = OpenInference(bundle, name, facts)
    api = ModelAPI(bundle, spec, loaded)
    server = Server(api, device, bundle)
    spec.serve(api, server)
    return server


def _tell(problem: BaseException) -> None:
    if isinstance(problem, BundleError):
        print(f"the bundle cannot be served: {problem.detail}", file=sys.stderr)  # noqa: T201
    else:
        traceback.print_exception(problem)
