"""Bundles for tests: a tiny standard-library server that can misbehave on demand, and silero-vad out of its wheels.

Nothing here needs the network except `silero_wheel`, which fetches a wheel from PyPI once and keeps it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SAMPLE_RATE = 16_000
CHUNK = 512
SILERO_FILE = "silero_vad/data/silero_vad.jit"
CACHE = Path(os.environ.get("QUARTERDECK_TEST_CACHE") or Path(tempfile.gettempdir()) / "quarterdeck-test-cache")

# The server of a trivial bundle. MODE is a space-separated list of what it shall do otherwise than well:
#   never_ready            /health answers 503 for ever
#   ready_after=S          /health answers 503 for S seconds
#   sleep=S                every answer takes S seconds
#   crash_after=N          exits with code 3 when request N + 1 comes
#   exit=N                 exits with code N at once, after a line on stderr
#   allocate=MIB           holds that much memory from the start
#   flood=N                prints N lines before it listens
#   ignore_term            does not end on SIGTERM
#   fail                   every predict answers 500
#   child                  has a child in a session of its own for as long as it lives; GET /pid tells its number too
# Paths: GET /health, POST /predict (echoes), GET /stream?chunks=N&every=S (server-sent events), POST /sleep?seconds=S,
# POST /crash, GET /pid, GET /env?name=X.
SERVER = """
import json, os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

MODE = dict(part.partition("=")[::2] for part in os.environ.get("MODE", "").split())
ANSWER = json.loads(os.environ.get("ANSWER", "null"))
VERSION = os.environ.get("MODEL_VERSION", "")
BEGAN = time.monotonic()
CHILD = None
count = 0
lock = threading.Lock()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def query(self, name, default):
        return parse_qs(urlsplit(self.path).query).get(name, [default])[0]

    def do_GET(self):
        path = urlsplit(self.path).path
        if path == "/health":
            wait = float(MODE.get("ready_after", 0))
            ready = "never_ready" not in MODE and time.monotonic() - BEGAN >= wait
            self.send(200 if ready else 503, {"ready": ready})
        elif path == "/stream":
            self.stream(int(self.query("chunks", "10")), float(self.query("every", "0.1")))
        elif path == "/pid":
            self.send(200, {"pid": os.getpid(), "version": VERSION, "child": CHILD})
        elif path == "/env":
            self.send(200, {"value": os.environ.get(self.query("name", ""))})
        else:
            self.send(404, {"error": "no such path"})

    def stream(self, chunks, every):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index in range(chunks):
            data = b"data: " + json.dumps({"index": index, "version": VERSION, "pid": os.getpid()}).encode() + b"\\n\\n"
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
            self.wfile.flush()
            time.sleep(every)
        self.wfile.write(b"0\\r\\n\\r\\n")

    def do_POST(self):
        global count
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/crash":
            os._exit(3)
        with lock:
            count += 1
            number = count
        if "crash_after" in MODE and number > int(MODE["crash_after"]):
            print("crashing as asked", file=sys.stderr, flush=True)
            os._exit(3)
        time.sleep(float(self.query("seconds", "0") if path == "/sleep" else MODE.get("sleep", 0)))
        if path not in ("/predict", "/sleep"):
            self.send(404, {"error": "no such path"})
        elif "fail" in MODE:
            print("failing as asked", file=sys.stderr, flush=True)
            self.send(500, {"error": "failed as asked"})
        else:
            try:
                echo = json.loads(body) if body else None
            except ValueError:
                echo = None
            self.send(200, {"answer": ANSWER, "version": VERSION, "pid": os.getpid(), "echo": echo})

class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

if "exit" in MODE:
    print("exiting as asked with " + MODE["exit"], file=sys.stderr, flush=True)
    sys.exit(int(MODE["exit"]))
if "child" in MODE:
    CHILD = os.fork()
    if CHILD == 0:
        os.setsid()
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(0)
if "allocate" in MODE:
    held = bytearray(int(MODE["allocate"]) << 20)
    held[::4096] = b"x" * len(held[::4096])
for index in range(int(MODE.get("flood", 0))):
    print("flood line %d of a model that talks too much" % index)
if "ignore_term" in MODE:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = Server((os.environ.get("HOST", "127.0.0.1"), int(sys.argv[1])), Handler)
print("listening on port %s as version %s" % (sys.argv[1], VERSION), flush=True)
server.serve_forever()
"""


def trivial_bundle(
    folder: Path,
    name: str = "trivial",
    version: str = "1",
    *,
    answer: Any = None,
    mode: str = "",
    env: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
    golden: Sequence[Mapping[str, Any]] = (),
    start_timeout: float = 30.0,
    files: Mapping[str, bytes] | None = None,
    host: str = "127.0.0.1",
    image: str | None = None,
) -> Path:
    """Write a bundle of the `command` runtime into `folder` and return it. `mode` is described at `SERVER`.

    `golden` holds tables as model.toml has them; `answer` is what `/predict` puts under "answer", beside version,
    pid and echo. Give host "0.0.0.0" and an `image` with python3 for the docker engine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.py").write_text(SERVER)
    for path, content in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    settings: dict[str, Any] = {
        "command": ["{python}", "{bundle}/server.py", "{port}"],
        "health_path": "/health",
        "predict_path": "/predict",
    }
    variables = {"MODE": mode, "ANSWER": json.dumps(answer), "MODEL_VERSION": version, "HOST": host, **(env or {})}
    config: dict[str, Any] = {
        "name": name,
        "version": version,
        "runtime": "command",
        "settings": settings | ({"image": image} if image else {}),
        "env": variables,
        "health": {"start_timeout": start_timeout},
    }
    if resources:
        config["resources"] = dict(resources)
    if golden:
        config["golden"] = [dict(item) for item in golden]
    (folder / "model.toml").write_text(toml(config))
    return folder


# --- silero-vad ------------------------------------------------------------------------------------------------


def silero_wheel(version: str) -> Path:
    """The silero-vad wheel of this version, fetched from PyPI once."""
    folder = CACHE / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob(f"silero_vad-{version}-*.whl"))
    if not found:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(folder),
            f"silero-vad=={version}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            raise RuntimeError(f"cannot fetch silero-vad {version} from PyPI: {done.stderr[-500:]}")
        found = sorted(folder.glob(f"silero_vad-{version}-*.whl"))
    return found[0]


def silero_model(version: str, into: Path) -> Path:
    """The TorchScript file of this version of silero-vad, written to `into`."""
    into.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(silero_wheel(version)) as wheel, wheel.open(SILERO_FILE) as source, into.open("wb") as target:
        shutil.copyfileobj(source, target)
    return into


def silero_bundle(folder: Path, version: str, *, golden: bool = True) -> Path:
    """A `torchscript` bundle of silero-vad: one request is a tensor x [n, 512] at 16 kHz, the answer n probabilities.

    The golden request is a second of speech, its answer computed by torch with the same file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    silero_model(version, folder / "model.jit")
    config: dict[str, Any] = {
        "name": "silero-vad",
        "version": version,
        "runtime": "torchscript",
        "card": "README.md",
        "settings": {
            "file": "model.jit",
            "reset": "reset_states",
            "sequence": True,
            "outputs": ["probability"],
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [-1, CHUNK]},
                {"name": "sr", "datatype": "INT64", "shape": [1]},
            ],
        },
        "resources": {"cpus": 1, "memory": "1GiB"},
        "health": {"start_timeout": 120},
        "metadata": {"source": f"https://pypi.org/project/silero-vad/{version}/", "license": "MIT"},
    }
    (folder / "README.md").write_text(f"# silero-vad {version}\n\nVoice activity detection at 16 kHz (MIT licence).\n")
    if golden:
        samples = speech()[: CHUNK * 31]
        (folder / "golden").mkdir(exist_ok=True)
        (folder / "golden" / "speech.json").write_text(json.dumps(silero_request(samples)))
        expected = {"outputs": [{"name": "probability", "data": silero_direct(folder / "model.jit", samples)}]}
        (folder / "golden" / "speech.expected.json").write_text(json.dumps(expected))
        config["golden"] = [
            {
                "name": "one second of speech",
                "body_file": "golden/speech.json",
                "expect_file": "golden/speech.expected.json",
                "tolerance": 1e-4,
            }
        ]
    (folder / "model.toml").write_text(toml(config))
    return folder


def silero_request(samples: Sequence[float]) -> dict[str, Any]:
    """An inference request over whole chunks of these samples."""
    count = len(samples) // CHUNK
    return {
        "inputs": [
            {"name": "x", "shape": [count, CHUNK], "datatype": "FP32", "data": list(samples[: count * CHUNK])},
            {"name": "sr", "shape": [1], "datatype": "INT64", "data": [SAMPLE_RATE]},
        ]
    }


def silero_direct(model: Path, samples: Sequence[float]) -> list[float]:
    """The same file called directly in torch, chunk after chunk from a fresh state."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(model)).eval()
    chunks = torch.tensor(samples[: len(samples) // CHUNK * CHUNK], dtype=torch.float32).reshape(-1, CHUNK)
    with torch.inference_mode():
        module.reset_states()
        return [float(module(chunk, SAMPLE_RATE)) for chunk in chunks]


# --- audio -----------------------------------------------------------------------------------------------------


def speech() -> list[float]:
    """About two seconds of speech at 16 kHz as float32 values: espeak-ng's where it is installed, else generated."""
    if shutil.which("espeak-ng"):
        return _espeak("Quarterdeck keeps every model serving, deploy after deploy.")
    return _vowels()


def silence(seconds: float = 1.0) -> list[float]:
    """Nearly nothing: a faint, deterministic hiss at 16 kHz."""
    count = int(seconds * SAMPLE_RATE)
    noise = b"".join(hashlib.sha256(str(index).encode()).digest() for index in range(count // 32 + 1))
    return [_float32((value - 127.5) / 127.5 * 1e-3) for value in noise[:count]]


def _espeak(text: str) -> list[float]:
    wave = subprocess.run(
        ["espeak-ng", "--stdout", "-v", "en", text], capture_output=True, timeout=30, check=True
    ).stdout
    rate = struct.unpack_from("<I", wave, 24)[0]
    body = wave[wave.index(b"data") + 8 :]
    body = body[: len(body) // 2 * 2]
    given = [value / 32768 for value in struct.unpack(f"<{len(body) // 2}h", body)]
    count = int(len(given) * SAMPLE_RATE / rate)
    # Linear interpolation is enough: the model only has to hear a voice.
    samples = []
    for index in range(count):
        place = index * rate / SAMPLE_RATE
        left = min(int(place), len(given) - 1)
        right = min(left + 1, len(given) - 1)
        samples.append(_float32(given[left] + (given[right] - given[left]) * (place - left)))
    return samples


def _vowels() -> list[float]:
    """Pulses of a voice through three resonances, vowel after vowel."""
    vowels = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480)]
    samples: list[float] = []
    for first, second, third in vowels:
        states = [(formant, 80.0, [0.0, 0.0]) for formant in (first, second, third)]
        for index in range(SAMPLE_RATE // 2):
            pitch = 120 + 15 * math.sin(index / 2500)
            value = 1.0 if index % int(SAMPLE_RATE / pitch) == 0 else 0.0
            for formant, width, past in states:
                radius = math.exp(-math.pi * width / SAMPLE_RATE)
                value += 2 * radius * math.cos(2 * math.pi * formant / SAMPLE_RATE) * past[0] - radius**2 * past[1]
                past[0], past[1] = value, past[0]
            samples.append(value)
    loudest = max(abs(value) for value in samples)
    return [_float32(value / loudest * 0.5) for value in samples]


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


# --- TOML ------------------------------------------------------------------------------------------------------


def toml(table: Mapping[str, Any]) -> str:
    """A table as TOML: nested tables inline. Enough for a model.toml, whatever is in it."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(inner) for inner in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for characters beyond the BMP, which go in as they are.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return json.dumps(value)
