"""rlx from Python: train runs, load trained policies, evaluate and probe them, list runs.

    import gymnasium
    import rlx

    run = rlx.train(["algo=ppo", "env=cartpole", "loop.total_env_steps=200_000"], name="car")
    policy = rlx.load("car")
    env = gymnasium.make(policy.config.env.id)
    obs, _ = env.reset(seed=0)
    carry = None
    while True:
        action, carry = policy.act(obs, carry)
        obs, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    print(rlx.evaluate("car", episodes=20).return_mean)

Runs are found in ./runs, or in $RLX_RUNS_DIR. Failures raise the errors of the command line, subclasses of `rlx.errors.RlxError`.
No function changes the caller's random generators or torch's settings.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlx import start
from rlx.build import build_algorithm, env_factory, env_spec, resolve_device, spaces_in_words
from rlx.checkpoint import load_algorithm
from rlx.config.saved import load_config
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError
from rlx.evaluation.evaluate import EvaluationResult, evaluate_run
from rlx.evaluation.loading import choose_checkpoint, usable_device
from rlx.evaluation.robustness import ProbeResult, probe_run
from rlx.launcher import check_is_alone
from rlx.policy import Policy, only_trainer
from rlx.rng import GlobalRNG, isolated_rng
from rlx.store.labels import Labels
from rlx.store.layout import runs_directory
from rlx.store.runs import RunDir

_COMMAND = "start the command `rlx train` by torchrun, or `rlx train --ranks N`"


class Run:
    """A run in its directory, as `train` and `resume` return it.

    Attributes:
        path: its directory.
        name: its name in commands.
    """

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self.path, self.name = directory.path, directory.reference

    @classmethod
    def open(cls, run: str | Path = "latest") -> Run:
        """The run with a name or path, or for `latest` the one that was started last. Raises a ConfigError if there is none."""
        return cls(RunDir.open(runs_directory(), str(run)))

    @property
    def status(self) -> str:
        """running, finished, stopped, failed, killed, paused or new."""
        return self._directory.status

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        return load_config(self.path / "config.yaml")

    @property
    def meta(self) -> dict[str, Any]:
        """The content of meta.json: when, where and with which versions the run was started."""
        return self._directory.meta()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, each with env_steps; `pandas.DataFrame(run.metrics())` makes a table of them."""
        return self._directory.metrics()

    def load(self, *, checkpoint: str | int = "latest", device: str | None = None, trust: bool = False, seed: int = 0) -> Policy:
        """The trained policy, see `load`."""
        return load(self.path, checkpoint=checkpoint, device=device, trust=trust, seed=seed)

    def resume(self, overrides: Sequence[str] = (), *, trust: bool = False, quiet: bool = True) -> Run:
        """Continue training, see `resume`."""
        return resume(self.path, overrides, trust=trust, quiet=quiet)

    def evaluate(self, **arguments: Any) -> EvaluationResult:
        """Evaluate it, see `evaluate` for the arguments."""
        return evaluate(self.path, **arguments)

    def probe(self, probes: Sequence[str] = (), **arguments: Any) -> ProbeResult:
        """Evaluate it under changes of its environment, see `probe` for the arguments."""
        return probe(self.path, probes, **arguments)

    def __repr__(self) -> str:
        return f"<rlx run: {self.path}, {self.status}>"


def load(
    run: str | Path | Run = "latest",
    *,
    checkpoint: str | int = "latest",
    device: str | torch.device | None = None,
    trust: bool = False,
    seed: int = 0,
) -> Policy:
    """The trained policy of a run.

    Args:
        run: a run's name, its path, `latest`, or a `Run`.
        checkpoint: `latest`, `best` (the highest evaluation), or the env steps of one.
        device: cpu, cuda, cuda:N, mps or auto; the default is the run's own setting, or the CPU where its device is missing.
        trust: allow imports of code that somebody else's run names, such as an environment's module; your own runs need no trust.
        seed: of the random numbers that the policy draws when it acts. The caller's generators are neither used nor changed.

    Raises:
        ConfigError: if there is no such run or device, or its environment cannot be made or is not trusted.
        CheckpointError: if there is no such checkpoint, or it is damaged or does not fit.
    """
    directory = _directory_of(run)
    config = directory.config(trust=trust)
    chosen = choose_checkpoint(directory, str(checkpoint))
    if device is not None:
        config.runtime = dataclasses.replace(config.runtime, device=str(device))
    on = usable_device(config) if device is None else resolve_device(config)
    env = env_factory(config)(1)
    try:
        spec, spaces = env_spec(config.env, env), None if config.env.is_game else spaces_in_words(env)
    finally:
        env.close()
    with isolated_rng(config.seed, 0):
        algorithm = build_algorithm(config, spec, on)
    load_algorithm(chosen, algorithm, name=config.algo.name, spaces=spaces)
    return Policy(config, algorithm, spec, env_steps=chosen.env_steps, seed=seed)


def train(
    overrides: Sequence[str],
    *,
    name: str | None = None,
    from_: str | Path | Run | None = None,
    auto_resume: bool = False,
    config_dir: str | Path | None = None,
    notes: str | None = None,
    tags: Sequence[str] = (),
    trust: bool = False,
    quiet: bool = True,
) -> Run:
    """Train a run to its end, as `rlx train` does, in a directory of its own.

    It trains in this process, one run at a time. A first Ctrl-C in the main thread stops after the iteration and saves.

    Args:
        overrides: settings as on the command line: `["algo=ppo", "env=cartpole", "algo.learning_rate=3e-4"]`.
        name: of the run's directory; the default is made of algo, env, seed and time.
        from_: another run whose networks and normalisers this one starts from: its name or path, with `@best` or `@ENV_STEPS` for a
            checkpoint that is not the latest, or a `Run`.
        auto_resume: continue the run of this name if there is one. Its settings must be the same, except those that a resume may change.
        config_dir: a directory with YAML groups of your own.
        notes: free text about the run, which `rlx show` prints and W&B gets.
        tags: labels to find the run by.
        trust: with auto_resume, see `load`.
        quiet: print only warnings; False prints progress as log.console sets it.

    Returns:
        The run, which is finished.

    Raises:
        ConfigError: if a setting is wrong, the name is taken, or this process already trains in another thread.
        RlxError: if training fails; the run can be resumed from its last checkpoint.
        KeyboardInterrupt: after a Ctrl-C, when everything is saved.
    """
    check_is_alone("rlx.train trains in one process", _COMMAND)
    words, labels = _words(overrides), _labels(notes, tags)
    with only_trainer(), _torch_as_it_was():
        composed = start.compose(words, None if config_dir is None else Path(config_dir))
        chosen = start.default_name(composed, timed=not auto_resume) if name is None else name
        reference = str(from_.path if isinstance(from_, Run) else from_) if from_ is not None else None
        started = start.to_auto_resume(composed, chosen, trust=trust, labels=labels, source=reference) if auto_resume else None
        if started is None:
            checked = start.check_new(composed, chosen, source=start.find_source(reference) if reference is not None else None)
            started = start.create(composed, chosen, checked, labels)
        return _train(started, ["rlx.train", *words], quiet=quiet)


def resume(run: str | Path | Run = "latest", overrides: Sequence[str] = (), *, trust: bool = False, quiet: bool = True) -> Run:
    """Continue a run from its last checkpoint, exactly as if it had never stopped, as `rlx resume` does.

    Args:
        run: a run's name, its path, `latest`, or a `Run`. A finished one is returned as it is, unless `overrides` raise its env steps.
        overrides: changes of loop.*, log.* and runtime.device, e.g. `["loop.total_env_steps=1_000_000"]`.
        trust: see `load`.
        quiet: see `train`.

    Raises as `train` does.
    """
    check_is_alone("rlx.resume trains in one process", _COMMAND)
    words = _words(overrides)
    with only_trainer(), _torch_as_it_was():
        started = start.to_resume(str(_directory_of(run).path), words, trust=trust)
        return _train(started, ["rlx.resume", *words], quiet=quiet)


def evaluate(
    run: str | Path | Run = "latest",
    *,
    episodes: int = 100,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    seed: int = 0,
    env: Mapping[str, Any] | None = None,
    opponent: str | None = None,
    simulations: int | None = None,
    ablation: Mapping[str, str] | None = None,
    videos: int = 0,
    trust: bool = False,
) -> EvaluationResult:
    """Evaluate a run in environments of its own, on the fixed episodes of `rlx eval`, which keeps the result with the run.

    Args:
        run: a run's name, its path, `latest`, or a `Run`.
        episodes: number of episodes.
        checkpoint: `latest`, `best`, or the env steps of one.
        stochastic: sample actions as in training, instead of taking the most likely one.
        seed: another one draws other episodes.
        env: arguments of the environment's constructor that are changed, e.g. `{"num_boxes": 2}`.
        opponent: of a two-player game: random, one_ply, uct:N or solver; the default is that of training's evaluations.
        simulations: of each tree search, for algorithms that search.
        ablation: parts of the agent that are removed or replaced, e.g. `{"imagination": "shuffled"}`, see `rlx eval --help`.
        videos: number of episodes that are recorded, in the run's directory.
        trust: see `load`.

    Returns:
        The mean return with its confidence interval, the episodes, and other measures that the environment supports; `as_dict()` is the
        output of `rlx eval --json`.

    Raises:
        ConfigError: if an argument does not fit the run.
        CheckpointError: if there is no such checkpoint, or it is damaged.
        EnvError: if the environment fails.
    """
    changes = [_env_setting(name, value) for name, value in _mapping("env", env).items()]
    ablation = _mapping("ablation", ablation)
    with only_trainer(), _torch_as_it_was():
        return evaluate_run(
            _directory_of(run), episodes=episodes, checkpoint=str(checkpoint), stochastic=stochastic, seed=seed, env_settings=changes,
            opponent=opponent, simulations=simulations, ablation=ablation, videos=videos, trust=trust,
        )  # fmt: skip


def probe(
    run: str | Path | Run = "latest",
    probes: Sequence[str] = (),
    *,
    episodes: int = 20,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    seed: int = 0,
    env: Mapping[str, Any] | None = None,
    flat: bool = False,
    trust: bool = False,
) -> ProbeResult:
    """Evaluate a run under changes of its environment, one at a time, on the fixed episodes of `rlx eval`; kept with the run.

    Args:
        run: a run's name, its path, `latest`, or a `Run`.
        probes: the changes, each written as for `rlx probe --probe`, e.g. `["friction=0.3,0.6", "delay"]`; of none, all that the
            environment allows.
        episodes: number of episodes under each change.
        checkpoint: `latest`, `best`, or the env steps of one.
        stochastic: sample actions as in training, instead of taking the most likely one.
        seed: another one draws other episodes.
        env: arguments of the environment's constructor that are changed in all rows, e.g. `{"num_boxes": 2}`.
        flat: play on flat ground, where the environment is a course with obstacles.
        trust: see `load`.

    Returns:
        The episodes without a change (`nominal`) and under each (`rows`), with means, intervals, and differences of each episode from
        itself without the change; `as_dict()` is the output of `rlx probe --json`.

    Raises:
        ConfigError: if an argument does not fit the run, or a change cannot be made in its environment.
        CheckpointError: if there is no such checkpoint, or it is damaged.
        EnvError: if the environment fails.
    """
    if not _are_texts(probes):
        raise ConfigError(f'probes: got {probes!r}; expected a list of changes, e.g. ["friction=0.6", "delay"]')
    changes = [_env_setting(name, value) for name, value in _mapping("env", env).items()]
    with only_trainer(), _torch_as_it_was():
        return probe_run(
            _directory_of(run), probes, episodes=episodes, checkpoint=str(checkpoint), stochastic=stochastic, seed=seed,
            env_settings=changes, flat=flat, trust=trust,
        )  # fmt: skip


def runs() -> Any:
    """One row for every run in the runs directory, the newest first.

    Returns:
        A `pandas.DataFrame` if pandas is installed, else a list of dictionaries; columns and keys are the fields of
        `rlx.store.rows.RunRow`.
    """
    from rlx.store.rows import run_rows

    rows = [dataclasses.asdict(row) for row in run_rows(runs_directory())]
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def _directory_of(run: str | Path | Run) -> RunDir:
    if not isinstance(run, str | Path | Run):
        raise ConfigError(f"got {type(run).__name__} {run!r}; expected a run's name, its path, or a Run")
    return RunDir.open(runs_directory(), str(run.path if isinstance(run, Run) else run))


def _words(overrides: Sequence[str]) -> list[str]:
    if not _are_texts(overrides):
        raise ConfigError(f'got {overrides!r}; expected a list of settings, e.g. ["algo=ppo", "env=cartpole"]')
    return list(overrides)


def _labels(notes: str | None, tags: Sequence[str]) -> Labels:
    if not isinstance(notes, str | None) or not _are_texts(tags):
        raise ConfigError(f"got notes={notes!r} and tags={tags!r}; expected a text, and a list of texts")
    return Labels.given(notes, list(tags))


def _are_texts(values: object) -> bool:
    """Whether something is a list or tuple of texts; a text itself, which is a sequence of texts too, is not."""
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping | None):
        raise ConfigError(f"{name}: got {value!r}; expected a dictionary")
    return dict(value or {})


def _env_setting(name: Any, value: Any) -> str:
    """An argument of an environment's constructor as `rlx eval --env` has it."""
    try:
        if not (isinstance(name, str) and name.isidentifier()):
            raise TypeError("that is no name of an argument")
        return f"{name}={json.dumps(value, allow_nan=False)}"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"env: got {name!r}: {value!r}; expected names with numbers, texts, lists or dictionaries ({error})") from error


def _train(started: start.Start, argv: list[str], *, quiet: bool) -> Run:
    from rlx.run import train as train_run
    from rlx.track.console import QuietConsole

    if not started.is_finished:
        console = QuietConsole() if quiet else None
        outcome = train_run(started.run, started.config, overrides=started.overrides, console=console, argv=argv)
        if outcome.exit_code == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)
    return Run(started.run)


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Restore torch's settings and the random generators after the block; training sets them for the whole process."""
    threads, precision, tf32 = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    deterministic, rng = torch.are_deterministic_algorithms_enabled(), GlobalRNG()
    saved = rng.state_dict()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)
        rng.load_state_dict(saved)
