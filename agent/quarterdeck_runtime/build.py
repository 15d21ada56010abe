"""What this interpreter's torch was built for: `python -m quarterdeck_runtime.build` prints it as one JSON object.

Touches no GPU: it says which ones the build could use, not which are there.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from typing import Any


def facts() -> dict[str, Any]:
    """`python` and `torch` versions, the `cuda` version that torch was built with and the `architectures` it has code
    for (`sm_90` machine code, `compute_90` code that a driver compiles); `None` and empty without torch or CUDA.
    """
    found: dict[str, Any] = {"python": platform.python_version(), "torch": None, "cuda": None, "architectures": []}
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return found
    found["torch"] = str(torch.__version__)
    found["cuda"] = torch.version.cuda
    # `get_arch_list` answers only where a GPU is; the flags are in the build itself.
    flags = torch._C._cuda_getArchFlags() if hasattr(torch._C, "_cuda_getArchFlags") else None
    found["architectures"] = sorted((flags or "").split())
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
