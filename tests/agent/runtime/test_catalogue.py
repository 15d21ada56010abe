"""The catalogue: what each shipped runtime makes of a version, word by word, and how wrong entries are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import quarterdeck_agent
from quarterdeck_agent.bundle import ModelConfig, parse
from quarterdeck_agent.catalogue import Catalogue, Launch, load
from quarterdeck_agent.catalogue import parse as parse_entry
from quarterdeck_agent.errors import InvalidInput, NotFound
from quarterdeck_agent.runtime_image import default_tag

BUILT_IN = Path(quarterdeck_agent.__file__).parent / "runtimes"
RUNTIME = default_tag()
SERVE = ("{python}", "-m", "quarterdeck_runtime", "--bundle", "{bundle}", "--host")
INFER = "/v2/models/{name}/infer"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load(BUILT_IN, Path("/nonexistent"))


def model(runtime: str, settings: dict[str, Any] | None = None, **more: Any) -> ModelConfig:
    return parse({"name": "m", "version": "1", "runtime": runtime, "settings": settings or {}, **more})


LAUNCHES: list[tuple[str, dict[str, Any], str, Launch]] = [
    (
        "python",
        {"handler": "handler:Model"},
        "process",
        Launch(
            None,
            (*SERVE, "127.0.0.1", "--port", "{port}", "--name", "{name}"),
            {},
            8000,
            "/v2/health/ready",
            INFER,
            facts_path="/v2",
            own_torch=True,
        ),
    ),
    (
        "python",
        {"handler": "handler:Model", "batch": 8},
        "docker",
        Launch(
            RUNTIME,
            (*SERVE, "0.0.0.0", "--port", "{port}", "--name", "{name}"),
            {},
            8000,
            "/v2/health/ready",
            INFER,
            facts_path="/v2",
            own_torch=True,
        ),
    ),
    (
        "torchscript",
        {"file": "vad.jit", "reset": "reset_states", "sequence": True},
        "docker",
        Launch(
            RUNTIME,
            (*SERVE, "0.0.0.0", "--port", "{port}", "--name", "{name}"),
            {},
            8000,
            "/v2/health/ready",
            INFER,
            facts_path="/v2",
            own_torch=True,
        ),
    ),
    (
        "command",
        {"command": ["{python}", "serve.py", "{port}"], "health_path": "/up", "predict_path": "/go"},
        "process",
        Launch(None, ("{python}", "serve.py", "{port}"), {}, 8000, "/up", "/go"),
    ),
    (
        "command",
        {"command": ["./serve"], "image": "registry.example/base:1", "port": 9000},
        "docker",
        Launch("registry.example/base:1", ("./serve",), {}, 9000, "/", "/"),
    ),
    (
        "image",
        {"image": "registry.example/model:3", "port": 5000, "health_path": "/ping"},
        "docker",
        Launch("registry.example/model:3", (), {}, 5000, "/ping", "/"),
    ),
    (
        "image",
        {"image": "registry.example/model:3", "command": ["--fast", "{port}"], "predict_path": "/invocations"},
        "docker",
        Launch("registry.example/model:3", ("--fast", "{port}"), {}, 8000, "/", "/invocations"),
    ),
    (
        "vllm",
        {"folder": "weights", "args": ["--max-model-len", 8192]},
        "docker",
        Launch(
            "vllm/vllm-openai:v0.33.0",
            (
                "{bundle}/weights",
                *("--host", "0.0.0.0", "--port", "{port}", "--served-model-name", "{name}"),
                *("--max-model-len", "8192"),
            ),
            {"HOME": "/tmp", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
            8000,
            "/health",
            "/v1/chat/completions",
        ),
    ),
    (
        "triton",
        {"model": "resnet", "repository": "repo"},
        "docker",
        Launch(
            "nvcr.io/nvidia/tritonserver:26.08-py3",
            (
                "tritonserver",
                "--model-repository={bundle}/repo",
                "--http-address=0.0.0.0",
                "--http-port={port}",
                "--allow-grpc=false",
                "--allow-metrics=false",
                "--exit-on-error=true",
            ),
            {},
            8000,
            "/v2/health/ready",
            "/v2/models/resnet/infer",
        ),
    ),
    (
        "ollama",
        {},
        "docker",
        Launch(
            "ollama/ollama:0.35.1",
            ("serve",),
            {
                "HOME": "/tmp",
                "OLLAMA_HOST": "0.0.0.0:{port}",
                "OLLAMA_MODELS": "{bundle}/models",
                "OLLAMA_KEEP_ALIVE": "-1",
                "OLLAMA_NOPRUNE": "1",
            },
            11434,
            "/",
            "/api/generate",
        ),
    ),
    (
        "mlserver",
        {"image": "seldonio/mlserver:1.7.1-sklearn"},
        "docker",
        Launch(
            "seldonio/mlserver:1.7.1-sklearn",
            ("mlserver", "start", "{bundle}"),
            {
                "HOME": "/tmp",
                "MLSERVER_HOST": "0.0.0.0",
                "MLSERVER_HTTP_PORT": "{port}",
                "MLSERVER_MODEL_NAME": "{name}",
                "MLSERVER_PARALLEL_WORKERS": "0",
            },
            8080,
            "/v2/health/ready",
            INFER,
        ),
    ),
    (
        "r-plumber",
        {"predict_path": "/score"},
        "docker",
        Launch("rstudio/plumber:latest", ("{bundle}/plumber.R",), {}, 8000, "/openapi.json", "/score"),
    ),
    (
        "djl",
        {"folder": "resnet"},
        "docker",
        Launch(
            "deepjavalibrary/djl-serving:0.36.0-cpu-full",
            ("serve", "-m", "{name}::PyTorch=file:{bundle}/resnet"),
            {"OMP_NUM_THREADS": "1"},
            8080,
            "/ping",
            "/predictions/{name}",
        ),
    ),
]


@pytest.mark.parametrize(("runtime", "settings", "engine", "launch"), LAUNCHES, ids=lambda x: str(x)[:24])
def test_a_version_launches_exactly_so(
    catalogue: Catalogue, runtime: str, settings: dict[str, Any], engine: str, launch: Launch
) -> None:
    assert catalogue.get(runtime).launch(model(runtime, settings), engine) == launch


def test_every_shipped_runtime_is_in_the_table_above(catalogue: Catalogue) -> None:
    assert {entry.name for entry in catalogue.list()} == {runtime for runtime, *_ in LAUNCHES}
    assert {path.stem for path in BUILT_IN.glob("*.toml")} == {runtime for runtime, *_ in LAUNCHES}


def test_every_shipped_runtime_tells_people_what_it_is(catalogue: Catalogue) -> None:
    for entry in catalogue.list():
        assert entry.origin == "built in"
        assert entry.title and entry.formats and entry.engines
        assert entry.homepage is None or entry.homepage.startswith("https://")
        assert all(setting.help for setting in catalogue.get(entry.name).settings), entry.name


def test_the_cpu_ask_and_the_version_s_own_variables_reach_the_environment(catalogue: Catalogue) -> None:
    wanted = model("python", {"handler": "h:M"}, resources={"cpus": 2.5}, env={"MODE": "x", "QUARTERDECK_CPUS": "1"})
    assert catalogue.get("python").launch(wanted, "process").env == {"QUARTERDECK_CPUS": "1", "MODE": "x"}
    wanted = model("python", {"handler": "h:M"}, resources={"cpus": 2.5})
    assert catalogue.get("python").launch(wanted, "process").env == {"QUARTERDECK_CPUS": "2.5"}
    assert catalogue.get("djl").launch(model("djl", resources={"cpus": 2.5}), "docker").env["OMP_NUM_THREADS"] == "2"


def test_the_version_s_health_path_wins(catalogue: Catalogue) -> None:
    launch = catalogue.get("vllm").launch(model("vllm", health={"path": "/mine"}), "docker")
    assert launch.health_path == "/mine"


def test_the_wire_tells_the_image_as_it_is_called_on_the_host(catalogue: Catalogue) -> None:
    assert catalogue.get("python").described().image == RUNTIME
    launch = catalogue.get("command").launch(model("command", {"command": ["serve"]}), "docker")
    assert launch.image == RUNTIME


def test_a_pretend_host_launches_any_runtime(catalogue: Catalogue) -> None:
    assert catalogue.get("vllm").launch(model("vllm"), "simulated").image == "vllm/vllm-openai:v0.33.0"


def test_a_version_s_own_command_may_name_the_facts_and_keeps_all_other_braces(catalogue: Catalogue) -> None:
    words = ["sh", "-c", "echo ${HOME} {port} {settings.command} {x} {threads} {host}"]
    command = catalogue.get("command").launch(model("command", {"command": words}), "docker").command
    assert command == ("sh", "-c", "echo ${HOME} {port} {settings.command} {x} 1 0.0.0.0")


@pytest.mark.parametrize(
    ("runtime", "settings", "field"),
    [
        ("python", {}, "settings.handler"),
        ("python", {"handler": 3}, "settings.handler"),
        ("python", {"handler": "h:M", "batch": "8"}, "settings.batch"),
        ("python", {"handler": "h:M", "batch": True}, "settings.batch"),
        ("python", {"handler": "h:M", "handel": "h:M"}, "settings.handel"),
        ("command", {"command": []}, "settings.command"),
        ("command", {"command": ["a", 1]}, "settings.command"),
        ("command", {"command": ["a\0"]}, "settings.command"),
        ("command", {"command": ["a"], "port": 0}, "settings.port"),
        ("command", {"command": ["a"], "port": 70000}, "settings.port"),
        ("command", {"command": ["a"], "health_path": "health"}, "settings.health_path"),
        ("command", {"command": ["a"], "predict_path": "/a b"}, "settings.predict_path"),
        ("image", {}, "settings.image"),
        ("image", {"image": "a b"}, "settings.image"),
        ("triton", {"model": "../x y"}, "predict_path"),
    ],
)
def test_a_wrong_setting_is_named(catalogue: Catalogue, runtime: str, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalogue.get(runtime).launch(model(runtime, settings), "docker")
    assert caught.value.field == field


def test_an_engine_that_cannot_run_it_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalogue.get("vllm").launch(model("vllm"), "process")
    assert caught.value.field == "runtime" and "docker" in str(caught.value.hint)


def test_an_unknown_runtime_names_the_known_ones(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound) as caught:
        catalogue.get("pytorch")
    assert "torchscript" in str(caught.value.hint)


ENTRY: dict[str, Any] = {
    "title": "Mine",
    "protocol": "http",
    "image": "registry.example/mine:1",
    "command": ["serve", "{bundle}", "{settings.level}"],
    "port": 9000,
    "health_path": "/up",
    "predict_path": "/go",
    "formats": ["plain"],
    "engines": ["docker"],
    "settings": {"level": {"type": "integer", "default": 3, "help": "how hard"}},
}


def test_an_entry_of_one_s_own_is_read() -> None:
    entry = parse_entry("mine", ENTRY)
    assert entry.launch(model("mine"), "docker").command == ("serve", "{bundle}", "3")
    assert entry.launch(model("mine", {"level": 9}), "docker").command == ("serve", "{bundle}", "9")
    assert entry.described().origin == "user"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"title": None}, "title"),
        ({"title": "a\x1b[31m"}, "title"),
        ({"protocol": "grpc"}, "protocol"),
        ({"port": 0}, "port"),
        ({"port": "9000"}, "port"),
        ({"health_path": "up"}, "health_path"),
        ({"predict_path": None}, "predict_path"),
        ({"formats": []}, "formats"),
        ({"formats": ["h5"]}, "formats"),
        ({"engines": ["podman"]}, "engines"),
        ({"engines": ["process", "docker"], "command": []}, "command"),
        ({"image": ""}, "image"),
        ({"image": "", "command": []}, "command"),
        ({"command": "serve"}, "command"),
        ({"command": ["{nothing}"]}, "command[0]"),
        ({"command": ["x", "{settings.nothing}"]}, "command[1]"),
        ({"env": {"1A": "x"}}, "env"),
        ({"env": {"A": 1}}, "env.A"),
        ({"env": {"A": "{nothing}"}}, "env.A"),
        ({"settings": {"level": {"type": "size"}}}, "settings.level.type"),
        ({"settings": {"level": {"type": "integer", "default": "3"}}}, "settings.level.default"),
        ({"settings": {"level": {"type": "integer", "most": 3}}}, "settings.level.most"),
        ({"settings": {"Level": {"type": "integer"}}}, "settings.Level"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    table = {key: value for key, value in (ENTRY | change).items() if value is not None}
    with pytest.raises(InvalidInput) as caught:
        parse_entry("mine", table)
    assert caught.value.field == field


def test_a_user_s_file_adds_or_replaces_and_a_broken_one_is_left_out_and_told_of(tmp_path: Path) -> None:
    text = 'title = "{}"\nprotocol = "http"\ncommand = ["x"]\nimage = "i"\nhealth_path = "/"\npredict_path = "/"\n'
    text += 'formats = ["plain"]\nengines = ["docker"]\n'
    (tmp_path / "mine.toml").write_text(text.format("Mine"))
    (tmp_path / "vllm.toml").write_text(text.format("Our vLLM"))
    (tmp_path / "triton.toml").write_text("title = ")
    (tmp_path / "Bad Name.toml").write_text(text.format("Bad"))
    catalogue = load(BUILT_IN, tmp_path)
    assert catalogue.get("mine").origin == "user"
    assert catalogue.get("vllm").title == "Our vLLM"
    assert catalogue.get("triton").origin == "built in"
    assert len(catalogue.problems) == 2
    assert any("triton.toml" in problem for problem in catalogue.problems)
    assert [entry.name for entry in catalogue.list()] == sorted(entry.name for entry in catalogue.list())
