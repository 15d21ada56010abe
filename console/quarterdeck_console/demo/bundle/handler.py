"""The demo's handler, copied into every bundle: tells which digit an 8 × 8 image of grey values from 0 to 16 shows.

Inputs: image, FP32 [n, 8, 8]. Outputs: label, INT64 [n]; probabilities, FP32 [n, 10]. The network itself lies beside
this file as network.py, its weights as model.safetensors.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Model:
    """What quarterdeck_runtime calls: `load` once, then `predict_batch` with whatever waits."""

    def load(self, bundle: Path, device: str) -> None:
        network: Any = importlib.import_module("network").Network()
        network.load_state_dict(weights(bundle / "model.safetensors"))
        self.network = network.eval().to(device)
        self.device = device

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.predict_batch([inputs])[0]

    def predict_batch(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images = [np.asarray(inputs["image"], dtype=np.float32).reshape(-1, 8, 8) for inputs in requests]
        with torch.inference_mode():
            batch = torch.from_numpy(np.concatenate(images)).to(self.device)
            probabilities = torch.softmax(self.network(batch), dim=1).cpu()
        answers = []
        for part in probabilities.split([len(image) for image in images]):
            answers.append({"label": part.argmax(dim=1), "probabilities": part})
        return answers


def weights(path: Path) -> dict[str, Any]:
    """The FP32 tensors of a safetensors file: a length, a JSON header, then raw bytes
    (https://huggingface.co/docs/safetensors)."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, about in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            values = np.frombuffer(raw[start + begin : start + end], dtype="<f4").reshape(about["shape"])
            tensors[name] = torch.from_numpy(values.copy())
    return tensors
