"""Train the demo's digit classifiers and write them as bundles: `python -m quarterdeck_console.demo.train OUTDIR`.

Runs as a process of its own, so that whoever shows the demo needs neither torch nor scikit-learn in its memory.
Writes digits-v1 (linear), digits-v2 (convolutional), digits-v3 (version 2 with its last layer's rows mixed up: loads,
answers, and is wrong), five.json (one request) and heldout.json (images nobody trained on, with their labels). With
--json every line on stdout is one event.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "bundle"
SEED = 20_261_123
HELD_OUT = 0.25
GOLDEN_SIZE = 6


@dataclass(frozen=True, slots=True)
class Recipe:
    """One version of the classifier and how it is trained."""

    version: str
    network: str
    title: str
    epochs: int
    rate: float


RECIPES = (
    Recipe("1", "linear", "one linear layer on the pixels", 12, 0.01),
    Recipe("2", "convolutional", "two convolutions and a small head", 12, 0.003),
)


@dataclass(frozen=True, slots=True)
class Digits:
    """The UCI digits as tensors: images [n, 8, 8] of 0 to 16, labels [n]."""

    train_images: Any
    train_labels: Any
    held_images: Any
    held_labels: Any


def main(arguments: list[str] | None = None) -> int:
    """Train, write the bundles, tell what was done."""
    parser = argparse.ArgumentParser(prog="python -m quarterdeck_console.demo.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the bundles")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    digits = load_digits(torch)
    options.folder.mkdir(parents=True, exist_ok=True)
    networks = []
    for recipe in RECIPES:
        began = time.monotonic()
        network = train(torch, recipe, digits)
        networks.append(network)
        reached = accuracy(torch, network, digits)
        bundle = write_bundle(torch, options.folder, recipe, network, digits, networks)
        tell(options.json, f"trained {bundle.name}", bundle, recipe.title, reached, time.monotonic() - began)
    broken = mix_up(torch, networks[-1])
    bundle = write_bundle(torch, options.folder, RECIPES[-1], broken, digits, networks, version="3")
    title = "its last layer mixed up"
    tell(options.json, f"broke {bundle.name}", bundle, title, accuracy(torch, broken, digits), 0.0)
    write_samples(options.folder, digits)
    return 0


def tell(as_json: bool, what: str, bundle: Path, title: str, reached: float, seconds: float) -> None:
    """One line on stdout."""
    event = {"event": what.partition(" ")[0], "bundle": str(bundle), "title": title, "accuracy": reached}
    event["seconds"] = round(seconds, 3)
    text = json.dumps(event) if as_json else f"{what}: {reached:.1%} of held-out digits right, {seconds:.1f} s"
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# --- data and training -----------------------------------------------------------------------------------------


def load_digits(torch: Any) -> Digits:
    """scikit-learn's copy of the UCI digits, split the same way each time."""
    data: Any = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    held = order[: int(len(order) * HELD_OUT)]
    kept = order[len(held) :]
    return Digits(images[kept], labels[kept], images[held], labels[held])


def train(torch: Any, recipe: Recipe, digits: Digits) -> Any:
    """A network trained by the recipe; the same weights each time on one machine."""
    network = importlib.import_module(f"quarterdeck_console.demo.bundle.{recipe.network}").Network()
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    lossy = torch.nn.CrossEntropyLoss()
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(digits.train_images)).split(64):
            optimiser.zero_grad()
            lossy(network(digits.train_images[batch]), digits.train_labels[batch]).backward()
            optimiser.step()
    return network.eval()


def accuracy(torch: Any, network: Any, digits: Digits) -> float:
    """The share of held-out digits that the network gets right."""
    with torch.inference_mode():
        right = network(digits.held_images).argmax(dim=1) == digits.held_labels
    return round(float(right.float().mean()), 4)


def mix_up(torch: Any, network: Any) -> Any:
    """The network with the rows of its last layer moved by one: every digit is taken for its neighbour."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name in list(state)[-2:]:
        state[name] = torch.roll(state[name], 1, dims=0)
    broken = type(network)()
    broken.load_state_dict(state)
    return broken.eval()


# --- bundles ---------------------------------------------------------------------------------------------------


def write_bundle(
    torch: Any, folder: Path, recipe: Recipe, network: Any, digits: Digits, trained: list[Any], version: str = ""
) -> Path:
    """Write one bundle. Its golden requests expect what is true, not what this network happens to say."""
    version = version or recipe.version
    bundle = folder / f"digits-v{version}"
    (bundle / "golden").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SOURCES / "handler.py", bundle / "handler.py")
    shutil.copyfile(SOURCES / f"{recipe.network}.py", bundle / "network.py")
    write_safetensors(bundle / "model.safetensors", network.state_dict())
    images, labels = golden_digits(torch, digits, trained)
    expected = {"outputs": [{"name": "label", "datatype": "INT64", "data": labels.tolist()}]}
    write_json(bundle / "golden" / "digits.json", request(images) | {"outputs": [{"name": "label"}]})
    write_json(bundle / "golden" / "digits.expected.json", expected)
    with torch.inference_mode():
        sure = torch.softmax(trained[-1](images[:1]), dim=1)
    write_json(bundle / "golden" / "sure.json", request(images[:1]) | {"outputs": [{"name": "probabilities"}]})
    as_trained = {"outputs": [{"name": "probabilities", "shape": [1, 10], "data": sure.reshape(-1).tolist()}]}
    write_json(bundle / "golden" / "sure.expected.json", as_trained)
    reached = accuracy(torch, network, digits)
    # A broken export carries the figures of the model it should have been: only running it tells.
    claimed = reached if version == recipe.version else accuracy(torch, trained[-1], digits)
    (bundle / "README.md").write_text(card(recipe, version, claimed, digits))
    (bundle / "model.toml").write_text(model_toml(recipe, version, claimed))
    return bundle


def golden_digits(torch: Any, digits: Digits, trained: list[Any]) -> tuple[Any, Any]:
    """A few held-out digits that every sound network so far gets right, and their true labels."""
    with torch.inference_mode():
        right = torch.ones(len(digits.held_labels), dtype=torch.bool)
        for network in trained:
            right &= network(digits.held_images).argmax(dim=1) == digits.held_labels
    chosen = right.nonzero().flatten()[:GOLDEN_SIZE]
    return digits.held_images[chosen], digits.held_labels[chosen]


def model_toml(recipe: Recipe, version: str, claimed: float) -> str:
    return f"""\
name = "digits"
version = "{version}"
runtime = "python"
card = "README.md"

[settings]
handler = "handler:Model"
batch = 16
max_wait_ms = 2
inputs = [{{ name = "image", datatype = "FP32", shape = [-1, 8, 8] }}]

[resources]
cpus = 1
memory = "1GiB"

[health]
start_timeout = 120

[[golden]]
name = "digits are what they are"
body_file = "golden/digits.json"
expect_file = "golden/digits.expected.json"
tolerance = 0

[[golden]]
name = "as sure as after training"
body_file = "golden/sure.json"
expect_file = "golden/sure.expected.json"
tolerance = 0.001

[metadata]
description = "{recipe.title}"
data = "UCI optical recognition of handwritten digits, scikit-learn's copy"
network = "{recipe.network}"
epochs = {recipe.epochs}
metrics = {{ accuracy = {claimed} }}
"""


def card(recipe: Recipe, version: str, claimed: float, digits: Digits) -> str:
    return f"""\
# digits {version}

Tells which digit an 8 × 8 grey image shows: {recipe.title}.

| | |
|---|---|
| trained on | {len(digits.train_labels)} images of the UCI handwritten digits |
| held out | {len(digits.held_labels)} images |
| accuracy on held-out images | {claimed:.1%} |
| input | `image`, FP32 [n, 8, 8], grey values from 0 to 16 |
| outputs | `label`, INT64 [n]; `probabilities`, FP32 [n, 10] |

For demonstrations only.
"""


# --- files -----------------------------------------------------------------------------------------------------


def request(images: Any) -> dict[str, Any]:
    """An inference request for these images."""
    data = [round(value) for value in images.reshape(-1).tolist()]
    return {"inputs": [{"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": data}]}


def write_samples(folder: Path, digits: Digits) -> None:
    """five.json, one request with a held-out five; heldout.json, all held-out images and labels."""
    fives = (digits.held_labels == 5).nonzero().flatten()
    write_json(folder / "five.json", request(digits.held_images[fives[:1]]))
    images = [[round(value) for value in image] for image in digits.held_images.reshape(-1, 64).tolist()]
    write_json(folder / "heldout.json", {"images": images, "labels": digits.held_labels.tolist()})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_safetensors(path: Path, tensors: dict[str, Any]) -> None:
    """FP32 tensors as a safetensors file (https://huggingface.co/docs/safetensors), its data aligned to 8 bytes."""
    header: dict[str, Any] = {}
    body = b""
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().contiguous().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


if __name__ == "__main__":
    sys.exit(main())
