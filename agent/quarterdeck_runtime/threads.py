"""How many threads the libraries under a model may use: as many as the replica asked for CPUs, never the machine's.

Must be called before numpy or torch are imported: their thread pools read the environment once.
"""

from __future__ import annotations

import math
import os
import sys

CPUS = "QUARTERDECK_CPUS"
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def limit() -> int:
    """Set the pools' sizes from the CPU ask, or from the CPUs this process may run on, and return the size."""
    threads = wanted(os.environ.get(CPUS, ""), len(os.sched_getaffinity(0)))
    for pool in POOLS:
        os.environ.setdefault(pool, str(threads))
    return threads


def wanted(ask: str, available: int) -> int:
    """`ask` in cores, maybe a fraction: 2.5 cores are two threads, since a third would be throttled."""
    try:
        cores = float(ask)
    except ValueError:
        return available
    if not math.isfinite(cores) or cores <= 0:
        return available
    return max(1, math.floor(cores))


def apply(threads: int) -> None:
    """Tell torch too, where the model brought it in."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
