"""Whether this machine can train, how fast it can write, and what to do about what is missing. Nothing is printed here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlx.extras import EXTRA_MODULES, missing

_PACKAGES = ("rlx", "torch", "numpy", "gymnasium", "hydra-core", "omegaconf", "typer", "rich", "wandb")
_SLOW_SYNC_S = 0.05
_SLOW_BYTES_PER_S = 30e6
_BLOCK = 20_000_000


@dataclass(frozen=True)
class Check:
    """One finding about this installation or machine."""

    name: str
    status: Literal["ok", "warning", "broken"]
    detail: str
    advice: str = ""
    """What to do about it."""


def diagnose() -> Iterator[Check]:
    """Check the installation and the machine, one finding after the other; takes a few seconds in all.

    A check that raises is a finding too: "broken", with the exception.
    """
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            yield Check(check.__name__.strip("_"), "broken", f"{type(error).__name__}: {error}")


def _packages() -> Iterator[Check]:
    from importlib import metadata

    found, absent = [f"python {sys.version.split()[0]}"], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    yield Check("versions", "ok", ", ".join(found))
    if absent:
        yield Check("packages", "broken", f"not installed: {', '.join(absent)}", f"pip install --upgrade rlx {' '.join(absent)}")


def _extras() -> Iterator[Check]:
    there = [extra for extra in EXTRA_MODULES if missing(extra) is None]
    absent = [extra for extra in EXTRA_MODULES if missing(extra) is not None]
    advice = f"only if you want them: pip install 'rlx[{','.join(absent)}]'" if absent else ""
    yield Check("extras", "ok", f"installed: {', '.join(there) or 'none'}" + (f"; not: {', '.join(absent)}" if absent else ""), advice)


def _dm_control() -> Iterator[Check]:
    """dm_control is written for one version of MuJoCo, and its newest requirement is often one for which it fails."""
    from importlib import metadata

    if missing("dmc"):
        return
    detail = f"dm_control {metadata.version('dm_control')} with mujoco {metadata.version('mujoco')}"
    if int(metadata.version("mujoco").partition(".")[0]) >= 4:
        advice = "if dm_control/* environments fail: pip install 'rlx[dmc]', which takes mujoco 3"
        yield Check("dm_control", "warning", f"{detail}: dm_control was seen to fail with mujoco 4", advice)
    else:
        yield Check("dm_control", "ok", detail)


def _configuration() -> Iterator[Check]:
    from rlx.config.compose import Composer, conf_dir

    composer = Composer()
    composer.compose([])
    detail = ", ".join(f"{len(composer.options(group))} {group}" for group in ("algo", "env", "recipe", "experiment"))
    yield Check("conf", "ok", f"{conf_dir()}: {detail}")


def _processors() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    detail = f"{cores} cores for this process, load {load:.1f}"
    if load > cores:
        yield Check("cpu", "warning", detail, "others are using this machine: speeds will vary, results will not")
    else:
        yield Check("cpu", "ok", detail)
    variable = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Check("threads", "ok", f"runs use runtime.threads (1 by default); torch alone would use {torch.get_num_threads()}, "
                                 f"OMP_NUM_THREADS is {variable}")  # fmt: skip


def _accelerators() -> Iterator[Check]:
    import torch

    has_card = Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia").exists()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            torch.ones(2, device=f"cuda:{index}").sum().item()  # fails if this build of torch has no kernels for the GPU
            memory = properties.total_memory / 2**30
            yield Check("gpu", "ok", f"runtime.device=cuda:{index} is {properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}; "
                                     "auto takes it for 32 channels, or 512 units, and more")  # fmt: skip
    elif torch.backends.mps.is_available():
        yield Check("gpu", "ok", "runtime.device=mps is the GPU of this Mac")
    elif has_card:
        why = "this torch is a build without CUDA" if torch.version.cuda is None else "torch cannot use it"
        yield Check(
            "gpu", "warning", f"there is an NVIDIA GPU, but {why}", "https://pytorch.org/get-started/locally names the build to install"
        )
    else:
        yield Check("gpu", "ok", "none; small networks train faster on the CPU anyway")


def _bfloat16() -> Iterator[Check]:
    import torch

    from rlx.nn.precision import bfloat16_instructions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if found := bfloat16_instructions(device):
        yield Check("bfloat16", "ok", f"{found} computes it: an update of PPO on images was measured to take 0.6 times as long",
                    "for image observations: runtime.precision=bf16; it changes numbers, so that it is never chosen for you")  # fmt: skip
    else:
        yield Check("bfloat16", "ok", "this processor has no instructions for it: runtime.precision=bf16 would be emulated, and slow")


def _storage() -> Iterator[Check]:
    import shutil

    from rlx.store.layout import runs_directory

    root = runs_directory()
    place = next(p for p in (root.resolve(), *root.resolve().parents) if p.exists())
    try:
        with _scratch(place) as directory:
            sync_s, bytes_per_s, locks = _measure(directory)
    except OSError as error:
        yield Check("runs", "broken", f"{root} cannot be written: {error.strerror}", "set RLX_RUNS_DIR to a directory that you can write")
        return
    detail = f"{root}: a durable small file takes {1000 * sync_s:.1f} ms, {_BLOCK / 1e6:.0f} MB are written at {bytes_per_s / 1e6:.0f} MB/s"
    if sync_s > _SLOW_SYNC_S or bytes_per_s < _SLOW_BYTES_PER_S:
        advice = "checkpoints will take long: set RLX_RUNS_DIR to a local disk, or save less often with loop.checkpoint_every"
        yield Check("runs", "warning", detail, advice)
    else:
        yield Check("runs", "ok", detail)
    if not locks:
        advice = "nothing keeps two processes from training one run there: set RLX_RUNS_DIR to a local disk"
        yield Check("lock", "warning", f"the file system of {root} has no locks", advice)
    free = shutil.disk_usage(place).free
    status: Literal["ok", "warning"] = "ok" if free > 2e9 else "warning"
    yield Check(
        "disk", status, f"{free / 1e9:.1f} GB free", "" if status == "ok" else "delete old runs, or set RLX_RUNS_DIR to another disk"
    )


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix=".rlx-doctor-", dir=place) as name:
        yield Path(name)


def _measure(directory: Path) -> tuple[float, float, bool]:
    """Seconds for a durable small file (median of 5), bytes per second of a large one, and whether files can be locked."""
    import fcntl
    import statistics
    import time

    from rlx.files import write_durably

    def timed(name: str, data: bytes) -> float:
        start = time.perf_counter()
        write_durably(directory / name, data)
        return time.perf_counter() - start

    sync_s = statistics.median(timed(f"small{i}", b"x" * 100) for i in range(5))
    block = os.urandom(_BLOCK)  # random, because the file system may compress
    bytes_per_s = _BLOCK / timed("large", block)
    with (directory / "small0").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return sync_s, bytes_per_s, False
    return sync_s, bytes_per_s, True


def _repeatability() -> Iterator[Check]:
    import gymnasium
    import torch

    def gradient(device: str) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        x, w = torch.randn(256, 64, generator=draw).to(device), torch.randn(64, 64, generator=draw).to(device).requires_grad_()
        torch.tanh(x @ w).square().mean().backward()
        assert w.grad is not None
        return w.grad.cpu()

    def episode() -> list[object]:
        env = gymnasium.make("CartPole-v1")
        seen = [env.reset(seed=0)[0].tolist(), *(env.step(t % 2)[0].tolist() for t in range(10))]
        env.close()
        return seen

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    differ = [device for device in devices if not torch.equal(gradient(device), gradient(device))]
    differ += [] if episode() == episode() else ["CartPole-v1"]
    if differ:
        yield Check("repeatable", "broken", f"the same seed gave two results on {', '.join(differ)}", "results here cannot be reproduced")
    else:
        yield Check("repeatable", "ok", f"the same seed gave the same bits twice: gradients on {' and '.join(devices)}, an episode")


def _tracking() -> Iterator[Check]:
    says = {name: os.environ[name] for name in ("WANDB_MODE", "WANDB_DISABLED") if os.environ.get(name)}
    if says:
        yield Check("wandb", "ok", f"{', '.join(f'{k}={v}' for k, v in says.items())} decides what log.wandb=auto does")
    elif _has_wandb_login():
        yield Check("wandb", "ok", "there is a login; log.wandb=auto copies runs online")
    else:
        yield Check("wandb", "ok", "no login; log.wandb=auto keeps an offline copy", "only if you want it: wandb login, then rlx sync")


def _has_wandb_login() -> bool:
    """Whether there are credentials where `wandb login` writes them. W&B's own check would start its service."""
    import netrc
    from urllib.parse import urlsplit

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            if host in netrc.netrc(os.path.expanduser(path)).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _rendering() -> Iterator[Check]:
    from ctypes.util import find_library

    if sys.platform != "linux" or missing("mujoco"):
        return
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    backend = os.environ.get("MUJOCO_GL") or ("glfw" if screen else "egl")
    library = {"egl": "EGL", "osmesa": "OSMesa", "glfw": "GL"}.get(backend, "")
    detail = f"MuJoCo videos are drawn with MUJOCO_GL={backend}, {'on a screen' if screen else 'without a screen'}"
    if library and not find_library(library):
        advice = "only for videos: apt-get install libegl1 libgl1, or libosmesa6 with MUJOCO_GL=osmesa"
        yield Check("rendering", "warning", f"{detail}, but lib{library} is missing", advice)
    elif backend == "glfw" and not screen:
        yield Check("rendering", "warning", f"{detail}, which needs one", "only for videos: unset MUJOCO_GL, or set it to egl or osmesa")
    else:
        yield Check("rendering", "ok", detail)


CHECKS = (
    _packages, _extras, _dm_control, _configuration, _processors, _accelerators, _bfloat16, _storage, _repeatability, _tracking, _rendering
)  # fmt: skip
