"""The executor that a command line chooses, and the jobs' needs of cores and GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlx.config.schema import RunConfig
from rlx.errors import ConfigError
from rlx.store.runs import RunDir
from rlx.sweep.executors.executor import Executor, Job
from rlx.sweep.executors.local import LocalExecutor
from rlx.sweep.plan import MakeJob, cores
from rlx.track.wandb import mirrors


def make_executor(where: str, configs: Sequence[RunConfig], options: dict[str, Any], *, folder: Path) -> Executor:
    """The executor that --executor names.

    Raises:
        ConfigError: if it is not available here.
    """
    ranks = options["ranks"]
    most = ranks * max(map(cores, configs))
    if where == "ray":
        from rlx.sweep.executors.ray import RayExecutor

        return RayExecutor(options["address"], slots=options["jobs"], cores=most, gpus=int(any(map(asks_for_gpu, configs))))
    if where == "slurm":
        from rlx.sweep.executors.slurm import SlurmExecutor

        any(map(asks_for_gpu, configs))  # raises for GPUs that a job elsewhere cannot request
        return SlurmExecutor(folder / ".submitit", slots=options["jobs"], options=options["slurm"])
    return LocalExecutor(options["jobs"], cores=most, gpus=_gpus(configs), gpus_each=ranks)


def asks_for_gpu(config: RunConfig) -> bool:
    """Whether a run on another machine requests a GPU. auto requests none: it is resolved on that machine.

    Raises:
        ConfigError: if it names a GPU by number, which is another GPU on another machine.
    """
    device = config.runtime.device
    if ":" in device:
        raise ConfigError(f"runtime.device={device}: a job on another machine is given a GPU of its own; say runtime.device=cuda")
    return device == "cuda"


def _wants_gpu(config: RunConfig) -> bool:
    """Whether a run on this machine needs a GPU of its own: it requests one, or trains faster on one and there is one."""
    if config.runtime.device in ("cpu", "mps") or (config.runtime.device == "auto" and not config.gains_from_gpu):
        return False
    from rlx.build import resolve_device  # imports torch, which the other cases do not need

    return resolve_device(config).type == "cuda"


def _gpus(configs: Sequence[RunConfig]) -> list[str]:
    """The GPUs to spread runs over, if they need any and do not name one themselves."""
    if not any(_wants_gpu(c) for c in configs):
        return []
    import torch

    if any(":" in c.runtime.device for c in configs):
        return []  # the user has chosen
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def check_ranks_of_runs(configs: Sequence[RunConfig], num_ranks: int, *, where: str) -> None:
    """Raise a ConfigError if runs cannot be trained by so many processes each."""
    from rlx.launcher import check_num_ranks

    check_num_ranks(num_ranks)
    if num_ranks == 1:
        return
    if where == "ray":
        raise ConfigError(f"--ranks {num_ranks}: Ray neither counts nor ends the processes that a task of its own starts; "
                          "use --executor local or slurm")  # fmt: skip
    from rlx.build import check_ranks  # imports torch

    for config in configs:
        check_ranks(config, num_ranks)


def job_maker(configs: Sequence[RunConfig], *, where: str = "local", ranks: int = 1) -> MakeJob:
    needs_gpu = _wants_gpu if where == "local" else asks_for_gpu
    modes = {c.log.wandb.value for c in configs}
    mirror = {mode: mirrors(mode) for mode in modes}

    def make(run: RunDir, config: RunConfig) -> Job:
        mirrored = mirror.get(config.log.wandb.value, True)
        return Job(run=str(run.path.resolve()), config=run.digest(), ranks=ranks, cores=ranks * cores(config),
                   gpus=ranks * needs_gpu(config), mirror=mirrored)  # fmt: skip

    return make
