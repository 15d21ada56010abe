"""The paths of the Open Inference Protocol v2 around one model, and `POST /predict` for plain JSON.

Turns a request into a job for the model's thread and the job's outcome into an answer; loads and runs nothing.
Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import Request, Response
from litserve import LitServer
from litserve.server import RegularRequestHandler
from litserve.specs.base import LitSpec

from quarterdeck_runtime import tensors
from quarterdeck_runtime.bundle import Bundle
from quarterdeck_runtime.errors import RequestError
from quarterdeck_runtime.worker import Job, ModelAPI, refusal

PRODUCT = "quarterdeck_runtime"
JSON = "application/json"


class OpenInference(LitSpec):  # type: ignore[misc]
    """Every path that a replica answers."""

    def __init__(self, bundle: Bundle, name: str, facts: dict[str, Any]) -> None:
        super().__init__()
        self.api_path = "/predict"
        self._bundle = bundle
        self._name = name
        self._facts = facts
        self._handler: RegularRequestHandler | None = None
        self._api: ModelAPI | None = None
        model = "/v2/models/{name}"
        for path, endpoint, method in (
            ("/v2", self.server, "GET"),
            ("/v2/health/live", self.live, "GET"),
            ("/v2/health/ready", self.ready, "GET"),
            (model, self.metadata, "GET"),
            (f"{model}/ready", self.model_ready, "GET"),
            (f"{model}/infer", self.infer, "POST"),
            (f"{model}/versions/{{version}}", self.metadata, "GET"),
            (f"{model}/versions/{{version}}/ready", self.model_ready, "GET"),
            (f"{model}/versions/{{version}}/infer", self.infer, "POST"),
            ("/predict", self.predict, "POST"),
        ):
            self.add_endpoint(path, endpoint, [method])

    def serve(self, api: ModelAPI, server: LitServer) -> None:
        """Answer requests with this model from now on."""
        self._api = api
        self._handler = RegularRequestHandler(api, server)

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        return request

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        return output

    async def server(self) -> Response:
        facts = self._facts | _torch_facts(str(self._facts.get("device", "")))
        return json_answer({"name": PRODUCT, "version": _own_version(), "extensions": [], "facts": facts})

    async def live(self) -> Response:
        return json_answer({"live": True})

    async def ready(self) -> Response:
        return json_answer({"ready": self._is_ready}, 200 if self._is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return json_answer({"name": self._name, "ready": self._is_ready}, 200 if self._is_ready else 503)

    async def metadata(self, request: Request) -> Response:
        self._check_model(request)
        inputs = [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in self._bundle.inputs]
        platform = {"torchscript": "pytorch_torchscript"}.get(self._bundle.runtime, self._bundle.runtime)
        return json_answer(
            {
                "name": self._name,
                "versions": [self._bundle.version],
                "platform": platform,
                "inputs": inputs,
                "outputs": [],
            }
        )

    async def infer(self, request: Request) -> Response:
        self._check_model(request)
        asked = self._parsed(await request.body(), lambda body: tensors.parse_request(body, self._bundle.inputs))

        def encode(result: Any) -> bytes:
            answer = {"model_name": self._name, "model_version": self._bundle.version}
            outputs = tensors.encode_outputs(tensors.named(result), asked.outputs)
            return tensors.dump(answer | ({"id": asked.id} if asked.id is not None else {}) | {"outputs": outputs})

        return await self._answer(Job(asked.inputs, encode))

    async def predict(self, request: Request) -> Response:
        body = self._parsed(await request.body(), tensors.parse_json)
        if not isinstance(body, dict) or "inputs" not in body:
            raise refusal(400, 'the body is not an object with "inputs"', "inputs")

        def encode(result: Any) -> bytes:
            return tensors.dump({"outputs": tensors.plain(result)})

        return await self._answer(Job(body["inputs"], encode))

    @property
    def _is_ready(self) -> bool:
        return self._api is not None and self._api.model is not None

    def _check_model(self, request: Request) -> None:
        name, asked = request.path_params["name"], request.path_params.get("version")
        if name != self._name:
            raise refusal(404, f"this replica serves {self._name!r}, not {name[:80]!r}", "name")
        if asked is not None and asked != self._bundle.version:
            raise refusal(404, f"this replica serves version {self._bundle.version!r}, not {asked[:80]!r}", "version")

    def _parsed(self, body: bytes, parse: Callable[[bytes], Any]) -> Any:
        if not self._is_ready:
            raise refusal(503, "the model is still loading", headers={"Retry-After": "1"})
        try:
            return parse(body)
        except RequestError as error:
            raise refusal(400, error.detail, error.field) from None

    async def _answer(self, job: Job) -> Response:
        assert self._handler is not None
        return Response(await self._handler.handle_request(job, Job), media_type=JSON)


def json_answer(value: object, status: int = 200) -> Response:
    return Response(tensors.dump(value), status, media_type=JSON)


def _torch_facts(device: str) -> dict[str, Any]:
    """The torch that the model brought in, the CUDA it was built with and the GPU it is on; nothing without torch."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "version"):
        return {"torch": None}
    found = {"torch": str(torch.__version__), "cuda": torch.version.cuda}
    # Asking for a GPU's name where CUDA was never begun would begin it.
    on_gpu = device.startswith("cuda") and torch.cuda.is_initialized()
    return found | ({"gpu": torch.cuda.get_device_name(device)} if on_gpu else {})


def _own_version() -> str:
    try:
        return version("quarterdeck")
    except PackageNotFoundError:
        return "unknown"
