"""The thread that owns the model, in LitServe's terms: an API, a loop and a transport.

It takes jobs off a queue in memory, batches them, and sends bodies or errors back to the event loop. It knows
nothing of HTTP beyond the status that an error becomes.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import HTTPException
from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType

from quarterdeck_runtime import models
from quarterdeck_runtime.bundle import Bundle
from quarterdeck_runtime.errors import RequestError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One request on its way to the model, and what makes the body of the answer out of the model's result."""

    inputs: Any
    encode: Callable[[Any], bytes]


class InProcess(MessageTransport):  # type: ignore[misc]
    """Answers on their way from the model's thread to the event loop."""

    def __init__(self) -> None:
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self) -> None:
        """Belong to the running event loop; answers sent before have nobody to go to."""
        self._loop = asyncio.get_running_loop()

    def send(self, item: Any, consumer_id: int) -> None:
        # The loop may have closed under an answer that came too late to matter.
        with suppress(RuntimeError):
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._answers.put_nowait, item)

    async def areceive(self, consumer_id: int | None = None, timeout: float | None = None) -> Any:
        return await self._answers.get()


class Batching(LitLoop):  # type: ignore[misc]
    """Waits for a request, then up to `batch_timeout` for more, and answers them together."""

    def __call__(
        self,
        lit_api: ModelAPI,
        device: str,
        worker_id: int,
        request_queue: queue.SimpleQueue[Any],
        transport: InProcess,
        *_: Any,
    ) -> None:
        while True:
            batch = self._gather(request_queue, lit_api.max_batch_size, lit_api.batch_timeout)
            for (consumer, uid, _, _), (answer, status) in zip(
                batch, lit_api.answer([request[3] for request in batch]), strict=True
            ):
                self.put_response(transport, consumer, uid, answer, status, LoopResponseType.REGULAR)

    @staticmethod
    def _gather(requests: queue.SimpleQueue[Any], most: int, wait: float) -> list[Any]:
        batch = [requests.get()]
        until = time.monotonic() + wait
        while len(batch) < most:
            try:
                batch.append(requests.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return batch


class ModelAPI(LitAPI):  # type: ignore[misc]
    """The model as LitServe sees it."""

    def __init__(self, bundle: Bundle, spec: LitSpec, loaded: Callable[[BaseException | None], None]) -> None:
        """`loaded` is called on the model's thread with what kept the model from loading, or with None."""
        super().__init__(
            max_batch_size=bundle.batch,
            batch_timeout=bundle.max_wait if bundle.batch > 1 else 0.0,
            spec=spec,
            loop=Batching(),
        )
        self._bundle = bundle
        self._loaded = loaded
        self.model: models.Model | None = None

    def setup(self, device: str) -> None:
        try:
            model = models.load(self._bundle, device)
        except BaseException as error:
            self._loaded(error)
            raise
        self._loaded(None)
        self.model = model

    def predict(self, x: Any, **_: Any) -> Any:
        assert self.model is not None
        return self.model.predict(x)

    def answer(self, jobs: list[Job]) -> list[tuple[Any, str]]:
        """Body or error for each job. One bad request in a batch spoils only itself."""
        assert self.model is not None
        if len(jobs) > 1:
            try:
                results = self.model.predict_batch([job.inputs for job in jobs])
                return [_guarded(partial(job.encode, result)) for job, result in zip(jobs, results, strict=True)]
            except Exception:  # noqa: BLE001 - a handler may raise anything; the requests are tried again below
                log.warning("a batch of %d failed; trying its requests one by one", len(jobs))
        return [_guarded(partial(self._one, job)) for job in jobs]

    def _one(self, job: Job) -> bytes:
        assert self.model is not None
        # With settings.batch a handler is always called the same way, however many requests there are.
        batched = self.max_batch_size > 1
        return job.encode(self.model.predict_batch([job.inputs])[0] if batched else self.model.predict(job.inputs))


def _guarded(work: Callable[[], bytes]) -> tuple[Any, str]:
    try:
        return work(), LitAPIStatus.OK
    except RequestError as error:
        return refusal(400, error.detail, error.field), LitAPIStatus.ERROR
    except Exception as error:  # noqa: BLE001 - a handler may raise anything; told on stderr, the worker goes on
        traceback.print_exc()
        detail = f"the model failed with {type(error).__name__}; the replica's log has the traceback"
        return refusal(500, detail), LitAPIStatus.ERROR


def refusal(status: int, detail: str, field: str | None = None, headers: dict[str, str] | None = None) -> Exception:
    problem = {"error": detail} | ({"field": field} if field else {})
    return HTTPException(status, detail=problem, headers=headers)
