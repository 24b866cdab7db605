"""Uploads to Weights & Biases after training: a whole record, or videos."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError, SyncError
from rlx.track.wandb import BestSoFar, Description, begin, files_directory, kill, reason, service, tear_down, why_no_login

_UPLOAD_TIMEOUT_S = 120.0


def upload(
    lines: Iterable[Mapping[str, Any]],
    *,
    run_dir: Path,
    run_id: str,
    group: str,
    name: str,
    project: str | None,
    config: dict[str, Any],
    tags: list[str],
    notes: str | None = None,
    entity: str | None = None,
    title: str | None = None,
    videos: Sequence[Path] = (),
    offline: bool = False,
) -> str:
    """Make a new W&B run of a whole record.

    Args:
        lines: the record; steps do not fall.
        run_dir: where an offline run is written, in wandb/; an online one leaves no files.
        run_id: an unused W&B id, because W&B keeps the first value of a step.
        group: the W&B id of the run that this is a copy of.
        name, project, config, tags, notes, entity, title: as for `make_mirror`.
        videos: films of evaluations.
        offline: write a directory for `wandb sync` instead of uploading.

    Returns:
        The address of the W&B run, or the directory of the offline one.

    Raises:
        ConfigError: if there is no login to upload with, or no wandb.
        SyncError: if W&B cannot be reached, within about 16 seconds, or fails.
    """
    try:
        if not offline and (why := why_no_login()):
            tear_down()
            raise ConfigError(f"W&B has {why}: run `wandb login` first")
        with tempfile.TemporaryDirectory(prefix="rlx-sync-") as scratch, _ended_service():
            described = Description(
                directory=files_directory(run_dir) if offline else Path(scratch),
                id=run_id, name=name, project=project, config=config, tags=tags, group=group, notes=notes, entity=entity, title=title,
            )  # fmt: skip
            run = begin(described, mode="offline" if offline else "online", finish_timeout=_UPLOAD_TIMEOUT_S, x_disable_stats=True)
            best = BestSoFar({})
            for line in lines:
                run.log(dict(line), step=line["env_steps"])
                best.update(line)
            run.summary.update(best.entries())
            if videos:
                run.log(_films(videos))
            where = str(Path(run.dir).parent) if offline else str(run.url)
            run.finish()
            return where
    except ConfigError:
        raise
    except ImportError as error:
        raise ConfigError(f"W&B cannot be imported ({reason(error)}); `pip install wandb` brings it") from error
    except Exception as error:
        raise SyncError(f"W&B: {reason(error)}; the record is untouched, try again when W&B can be reached") from error


@contextlib.contextmanager
def _ended_service() -> Iterator[None]:
    """End W&B's process after the block, at once after an exception, because then nothing is left to upload."""
    try:
        yield
    except BaseException:
        kill(service())
        raise
    finally:
        tear_down()


def add_videos(videos: Sequence[Path], described: Description) -> str:
    """Add films to the W&B run that a run was mirrored to; returns its address.

    Raises:
        SyncError: if there is no such W&B run, or W&B cannot be reached.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="rlx-sync-") as scratch, _ended_service():
            run = begin(replace(described, directory=Path(scratch)), mode="online", resume="must", finish_timeout=_UPLOAD_TIMEOUT_S,
                        x_disable_stats=True)  # fmt: skip
            run.log(_films(videos))
            run.finish()
            return str(run.url)
    except Exception as error:
        raise SyncError(f"W&B: {reason(error)}; `rlx sync {described.name}` uploads the run with its videos") from error


def _films(videos: Sequence[Path]) -> dict[str, Any]:
    """Films as W&B shows them, captioned by the files' names, which begin with the env steps of the checkpoint."""
    import wandb

    return {f"videos/{path.stem}": wandb.Video(str(path), caption=path.stem, format="mp4") for path in videos}
