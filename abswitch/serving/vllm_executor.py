"""What runs an engine's model on a CPU: in the engine's own process, on the cores of its group.

Only vLLM imports this, by the name that `vllm_args.on_cores` gives it. Left alone, vLLM starts a second process for a
model on a CPU, to set OpenMP's environment for it; the scheduler, in the first, spins on a core while the model
computes. The number of threads and the cores they run on can be set without an environment, and without that second
process a start takes half the time and an engine little more than half the memory (`docs/decisions/0026`).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class PlacedExecutor(UniProcExecutor):  # type: ignore[misc]  # vLLM's modules carry no types
    """vLLM's executor for one process, with threads on the cores that `additional_config` names."""

    vllm_config: Any

    def _init_executor(self) -> None:
        cores = self.vllm_config.additional_config["abswitch_cores"]
        # Before the first thread of the model's: threads inherit the cores of the one that starts them.
        os.sched_setaffinity(0, cores["cpus"])
        torch.set_num_threads(cores["threads"])
        super()._init_executor()
