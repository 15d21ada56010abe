"""Whether our figures of a real GPU are nvidia-smi's: `python -m tests.gpu_smoke` on a machine that has one."""
