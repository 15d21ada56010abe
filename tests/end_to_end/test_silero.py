"""silero-vad out of its PyPI wheels: deployed, called with real audio, upgraded under load and rolled back.

Whatever answers through the gateway is compared with the same file called directly in torch, as processes and in
containers.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import importlib.util
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent import runtime_image
from tests import images
from tests.end_to_end.rig import Agent, agent, until
from tests.models import CHUNK, silence, silero_bundle, silero_direct, silero_request, speech

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs torch (extra torch)", allow_module_level=True)

pytestmark = [pytest.mark.torch, pytest.mark.envoy]

OLD, NEW = "5.1.2", "6.2.3"
NAME = "silero-vad"
PATH = f"/v2/models/{NAME}/infer"
QUICK = ("--dwell", "0.3")
NEAR = 1e-5


@dataclass(frozen=True)
class Sound:
    """Audio, and what each version answers when torch calls it directly."""

    samples: list[float]
    direct: dict[str, list[float]]


@dataclass(frozen=True)
class Silero:
    """Both versions as bundles, and what they are asked."""

    bundles: dict[str, Path]
    speech: Sound
    silence: Sound


@pytest.fixture(scope="module")
def silero(tmp_path_factory: pytest.TempPathFactory) -> Silero:
    folder = tmp_path_factory.mktemp("silero")
    bundles = {version: silero_bundle(folder / version, version) for version in (OLD, NEW)}

    def sound(samples: list[float]) -> Sound:
        return Sound(samples, {version: silero_direct(bundles[version] / "model.jit", samples) for version in bundles})

    return Silero(bundles, sound(speech()), sound(silence()))


@pytest.fixture(scope="session")
def runtime() -> str:
    """The image that the torchscript runtime asks for, made of this very interpreter and these sources."""
    tag = runtime_image.default_tag()
    runtime_image.build(images.SOCKET, tag, lambda _: None)
    return tag


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Agent]:
    if request.param == "docker":
        request.getfixturevalue("runtime")
    with agent(tmp_path / "host", request.param) as running:
        yield running


def ask(host: Agent, samples: list[float]) -> tuple[str, list[float]]:
    """Which version answered, and its probabilities."""
    status, answer = host.call(NAME, silero_request(samples), path=PATH)
    assert status == 200, answer
    assert [output["name"] for output in answer["outputs"]] == ["probability"]
    return answer["model_version"], answer["outputs"][0]["data"]


def same_as_torch(host: Agent, silero: Silero, version: str) -> None:
    for sound in (silero.speech, silero.silence):
        answered, probabilities = ask(host, sound.samples)
        assert answered == version
        assert probabilities == pytest.approx(sound.direct[version], abs=NEAR)


class Talk:
    """Asks for a short piece of speech over and over from one thread, and compares every answer with torch's."""

    def __init__(self, host: Agent, silero: Silero) -> None:
        self._host, self._ending = host, threading.Event()
        piece = silero.speech.samples[: 6 * CHUNK]
        self._body = json.dumps(silero_request(piece))
        self._right = {version: sound[:6] for version, sound in silero.speech.direct.items()}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers = Counter[str]()
        self.wrong: list[str] = []

    def __enter__(self) -> Talk:
        self._thread.start()
        until(lambda: self.answers or self.wrong, "the load has begun")
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._ending.wait(0.005):
            try:
                answer = self._once()
                version, data = str(answer["model_version"]), answer["outputs"][0]["data"]
                if data != pytest.approx(self._right[version], abs=NEAR):
                    raise ValueError(f"{version} answered {data}")
                self.answers[version] += 1
            except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))

    def _once(self) -> Any:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._host.port, timeout=60)) as connection:
            connection.request("POST", f"/{NAME}{PATH}", self._body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise ValueError(f"{response.status} {text[:300]!r}")
            return json.loads(text)


def test_both_versions_answer_as_torch_does_through_an_upgrade_under_load_and_a_rollback(
    host: Agent, silero: Silero
) -> None:
    voice = silero.speech
    assert max(voice.direct[OLD]) > 0.9 and max(silero.silence.direct[OLD]) < 0.5
    assert voice.direct[NEW] != pytest.approx(voice.direct[OLD], abs=100 * NEAR), "the versions cannot be told apart"

    host.must("push", str(silero.bundles[OLD]))
    host.must("push", str(silero.bundles[NEW]))
    host.must("deploy", f"{NAME}:{OLD}", *QUICK)
    same_as_torch(host, silero, OLD)
    facts = until(lambda: host.api("GET", f"/v1/versions/{NAME}:{OLD}")[1]["facts"], "the version tells its facts")
    assert (facts["torch"], facts["device"]) == (importlib.metadata.version("torch"), "cpu")

    with Talk(host, silero) as talk:
        host.must("deploy", f"{NAME}:{NEW}", *QUICK)
        until(lambda: talk.answers[NEW] > 10, "the new version answers the load")
        same_as_torch(host, silero, NEW)
        began, old = time.monotonic(), talk.answers[OLD]
        host.must("rollback", NAME)
        took = time.monotonic() - began
        until(lambda: talk.answers[OLD] > old + 10, "the old version answers the load again")
        same_as_torch(host, silero, OLD)
    assert talk.wrong == []

    first, second, third = reversed(host.revisions(NAME))
    assert [each["outcome"] for each in (first, second, third)] == ["replaced", "replaced", "serving"]
    assert third["rollback_of"] == 1
    names = [step["name"] for step in third["steps"]]
    assert "start" not in names, f"the rollback in {took:.2f} s was not to a warm replica: {names}"
    logs = host.must("logs", NAME, "--revision", "2").out
    assert f"{NAME}:{NEW} is ready" in logs

    # Under another name the model still answers, golden requests among others, where its own name says.
    host.must("deploy", f"{NAME}:{NEW}", "--as", "listener", *QUICK)
    assert host.deployment("listener")["predict_path"] == PATH
    assert host.call("listener", silero_request(silero.speech.samples), PATH)[0] == 200


@pytest.mark.docker
def test_a_container_serves_as_nobody_and_cannot_write_but_to_its_own_memory(
    tmp_path: Path, runtime: str, silero: Silero
) -> None:
    with agent(tmp_path / "host", "docker") as host:
        host.must("push", str(silero.bundles[NEW]))
        host.must("deploy", f"{NAME}:{NEW}", *QUICK)
        (replica,) = host.deployment(NAME)["replicas"]
        container = str(replica["handle"])

        def inside(code: str) -> str:
            return images.docker("exec", container, "python3", "-c", code)

        assert inside("import os; print(os.getuid(), os.getgid())") == "65534 65534"
        attempt = (
            "import sys\n"
            "for path in sys.argv[1:]:\n"
            "    try:\n"
            "        open(path, 'w').close(); print(path, 'written')\n"
            "    except OSError as error:\n"
            "        print(path, error.strerror)\n"
        )
        paths = ("/file", "/opt/site/file", "/model/file", "/model/model.jit", "/tmp/file")
        said = images.docker("exec", container, "python3", "-c", attempt, *paths).splitlines()
        assert said == [*(f"{path} Read-only file system" for path in paths[:4]), "/tmp/file written"]
        status = dict(line.split(":\t") for line in inside("print(open('/proc/1/status').read())").splitlines() if line)
        assert (status["CapEff"], status["NoNewPrivs"]) == ("0000000000000000", "1")
        limit = int(images.docker("inspect", "-f", "{{.HostConfig.Memory}}", container))
        assert limit == 1 << 30
        assert images.docker("port", container) == ""
        assert images.docker("inspect", "-f", "{{.Image}}", container) == images.docker(
            "inspect", "-f", "{{.Id}}", runtime
        )
