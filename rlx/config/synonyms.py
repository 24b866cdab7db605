"""Settings by their names in Stable-Baselines3, CleanRL, RLlib, W&B and Hydra's tutorials."""

from __future__ import annotations

import re
from collections.abc import Collection

_KEYS: dict[str, str] = {
    "lr": "algo.learning_rate", "pi_lr": "algo.learning_rate", "alpha": "algo.entropy_coef algo.learning_rate",
    "step_size": "algo.learning_rate",
    "anneal_lr": "algo.anneal_learning_rate", "lr_schedule": "algo.anneal_learning_rate algo.adaptive_learning_rate",
    "gamma": "algo.discount", "discount_factor": "algo.discount",
    "lam": "algo.gae_lambda", "lambda": "algo.gae_lambda", "lambda_": "algo.gae_lambda", "gae": "algo.gae_lambda",
    "n_steps": "algo.rollout_length algo.td_steps", "num_steps": "algo.rollout_length", "rollout_steps": "algo.rollout_length",
    "rollout_fragment_length": "algo.rollout_length", "steps_per_epoch": "algo.rollout_length", "nsteps": "algo.rollout_length",
    "horizon": "algo.planner.horizon algo.rollout_length",
    "n_epochs": "algo.num_epochs", "update_epochs": "algo.num_epochs", "num_sgd_iter": "algo.num_epochs", "noptepochs": "algo.num_epochs",
    "epochs": "algo.num_epochs algo.max_epochs", "ppo_epochs": "algo.num_epochs",
    "n_minibatches": "algo.num_minibatches", "nminibatches": "algo.num_minibatches",
    "batch_size": "algo.batch_size algo.num_minibatches", "minibatch_size": "algo.batch_size algo.num_minibatches",
    "sgd_minibatch_size": "algo.batch_size algo.num_minibatches", "mini_batch_size": "algo.batch_size algo.num_minibatches",
    "train_batch_size": "algo.batch_size algo.rollout_length",
    "clip_range": "algo.clip", "clip_coef": "algo.clip", "clip_param": "algo.clip", "cliprange": "algo.clip", "eps_clip": "algo.clip",
    "clip_ratio": "algo.clip", "clip_range_vf": "algo.value_clip", "clip_vloss": "algo.value_clip", "vf_clip_param": "algo.value_clip",
    "ent_coef": "algo.entropy_coef", "entropy_coeff": "algo.entropy_coef", "entropy": "algo.entropy_coef", "ent": "algo.entropy_coef",
    "vf_coef": "algo.value_coef", "vf_loss_coeff": "algo.value_coef", "value_loss_coef": "algo.value_coef", "vf": "algo.value_coef",
    "grad_clip": "algo.max_grad_norm", "clip_grad": "algo.max_grad_norm", "gradient_clip": "algo.max_grad_norm",
    "max_norm": "algo.max_grad_norm",
    "norm_adv": "algo.normalize_advantage", "norm_obs": "algo.normalize_observation", "norm_reward": "algo.normalize_reward",
    "normalize": "algo.normalize_observation", "normalize_obs": "algo.normalize_observation", "clip_obs": "algo.observation_clip",
    "kl_coeff": "algo.kl_coef", "desired_kl": "algo.learning_rate_kl", "kl_threshold": "algo.learning_rate_kl",
    "betas": "algo.adam_beta1 algo.adam_beta2", "normalize_returns": "algo.normalize_value", "use_symmetry": "algo.mirror",
    "net_arch": "algo.hidden_sizes", "hidden": "algo.hidden_sizes", "hidden_dim": "algo.hidden_sizes algo.hidden_size",
    "hidden_layers": "algo.hidden_sizes", "fcnet_hiddens": "algo.hidden_sizes", "layers": "algo.layers algo.hidden_sizes",
    "hidden_size": "algo.hidden_size algo.hidden_sizes", "hid": "algo.hidden_sizes", "arch": "algo.hidden_sizes",
    "activation_fn": "algo.activation", "fcnet_activation": "algo.activation",
    "buffer_size": "algo.replay_size algo.model_replay_size", "replay_buffer_size": "algo.replay_size algo.model_replay_size",
    "replay_capacity": "algo.replay_size algo.model_replay_size", "learning_starts": "algo.replay_start algo.initial_steps",
    "gradient_steps": "algo.utd", "utd_ratio": "algo.utd", "updates_per_step": "algo.utd", "num_updates": "algo.utd",
    "train_freq": "algo.rollout_length", "train_frequency": "algo.rollout_length", "start_steps": "algo.initial_steps",
    "policy_delay": "algo.delay", "policy_frequency": "algo.delay", "policy_freq": "algo.delay", "polyak": "algo.tau",
    "target_update_interval": "algo.target_every", "target_network_frequency": "algo.target_every",
    "target_network_update_freq": "algo.target_every", "n_critics": "algo.num_critics", "autotune": "algo.adapt_entropy_coef",
    "target_policy_noise": "algo.smoothing", "policy_noise": "algo.smoothing", "target_noise_clip": "algo.smoothing_clip",
    "noise_clip": "algo.smoothing_clip", "exploration_noise": "algo.exploration_std", "act_noise": "algo.exploration_std",
    "exploration_initial_eps": "algo.epsilon_start", "start_e": "algo.epsilon_start", "exploration_final_eps": "algo.epsilon_end",
    "end_e": "algo.epsilon_end", "exploration_fraction": "algo.epsilon_fraction", "double_q": "algo.double",
    "prioritized_replay": "algo.per", "prioritized": "algo.per",
    "num_mcts_sims": "algo.search.num_simulations", "n_simulations": "algo.search.num_simulations",
    "simulations": "algo.search.num_simulations",
    "population": "algo.planner.num_candidates", "popsize": "algo.planner.num_candidates", "population_size": "algo.planner.num_candidates",
    "num_samples": "algo.planner.num_candidates", "plan_hor": "algo.planner.horizon",
    "particles": "algo.num_particles", "npart": "algo.num_particles", "blocks": "algo.num_blocks", "channels": "algo.num_channels",
    "reuse": "algo.replay_ratio", "cpuct": "algo.search.c_puct", "ensemble": "algo.ensemble_size", "num_ensemble": "algo.ensemble_size",
    "total_timesteps": "loop.total_env_steps", "timesteps": "loop.total_env_steps", "num_timesteps": "loop.total_env_steps",
    "n_timesteps": "loop.total_env_steps", "num_env_steps": "loop.total_env_steps", "total_steps": "loop.total_env_steps",
    "max_steps": "loop.total_env_steps", "steps": "loop.total_env_steps", "env_steps": "loop.total_env_steps", "n": "loop.total_env_steps",
    "max_timesteps": "loop.total_env_steps", "timesteps_total": "loop.total_env_steps", "num_frames": "loop.total_env_steps",
    "frames": "loop.total_env_steps", "budget": "loop.total_env_steps", "num_steps_total": "loop.total_env_steps",
    "train_steps": "loop.total_env_steps", "total_frames": "loop.total_env_steps", "max_env_steps": "loop.total_env_steps",
    "eval_freq": "loop.eval_every", "evaluation_interval": "loop.eval_every", "eval_interval": "loop.eval_every",
    "n_eval_episodes": "loop.eval_episodes", "num_eval_episodes": "loop.eval_episodes", "evaluation_duration": "loop.eval_episodes",
    "save_freq": "loop.checkpoint_every", "checkpoint_freq": "loop.checkpoint_every", "save_interval": "loop.checkpoint_every",
    "save_every": "loop.checkpoint_every", "checkpoint_frequency": "loop.checkpoint_every",
    "log_interval": "loop.log_every", "log_freq": "loop.log_every", "keep_checkpoints_num": "loop.keep_checkpoints",
    "reward_threshold": "loop.target_return", "stop_reward": "loop.target_return", "episode_reward_mean": "loop.target_return",
    "n_envs": "env.num_envs", "nenvs": "env.num_envs", "num_processes": "env.num_envs", "num_env": "env.num_envs", "envs": "env.num_envs",
    "num_envs_per_worker": "env.num_envs", "num_workers": "env.workers", "n_workers": "env.workers", "num_env_runners": "env.workers",
    "env_kwargs": "env.kwargs", "env_config": "env.kwargs", "max_episode_steps": "env.max_episode_steps env.kwargs.max_episode_steps",
    "track": "log.wandb", "wandb": "log.wandb", "use_wandb": "log.wandb", "wandb_mode": "log.wandb",
    "wandb_project_name": "log.wandb_project", "project": "log.wandb_project", "wandb_project": "log.wandb_project",
    "project_name": "log.wandb_project",
    "verbose": "log.console", "progress_bar": "log.console", "quiet": "log.console",
    "cuda": "runtime.device", "gpu": "runtime.device", "num_gpus": "runtime.device", "gpus": "runtime.device", "device": "runtime.device",
    "num_threads": "runtime.threads", "torch_deterministic": "runtime.deterministic",
    "random_seed": "seed", "seeds": "seed",
    "env_id": "env", "env_name": "env", "environment": "env", "gym_id": "env", "game": "env", "task": "env.task env.kwargs.task env",
    "gym": "env",
    "algos": "algo", "agent": "algo", "algorithm": "algo", "run": "algo", "model": "algo", "policy": "algo", "method": "algo",
    "config": "experiment", "exp": "experiment", "preset": "experiment",
}  # fmt: skip
"""For each word, the keys that it may mean, the first that the chosen algorithm has being the one."""

ALGOS: dict[str, str] = {
    "ddpg": "algo=td3 algo.twin=false algo.delay=1 algo.smoothing=0",
    "ddqn": "algo=dqn algo.double=true",
    "c51": "algo=dqn algo.distributional=c51",
    "mbpo": "algo=sac algo.imagined=mbpo",
    "mve": "algo=sac algo.expansion=mve",
    "steve": "algo=sac algo.expansion=steve",
}
"""Algorithms that are settings of another one."""

_TRUE = ("", "true", "1", "yes", "on")
_VALUES: dict[str, dict[str, str]] = {
    "track": dict.fromkeys(_TRUE, "online") | {"false": "disabled"},
    "use_wandb": dict.fromkeys(_TRUE, "auto") | {"false": "disabled"},
    "wandb": dict.fromkeys(_TRUE, "auto") | dict.fromkeys(("false", "0", "no", "off", "none"), "disabled"),
    "cuda": dict.fromkeys(_TRUE, "cuda") | {"false": "cpu"},
    "gpu": dict.fromkeys(_TRUE, "cuda") | {"0": "cuda:0"},
    "num_gpus": {"0": "cpu", "1": "cuda"},
    "gpus": {"0": "cpu", "1": "cuda"},
    "verbose": {"0": "quiet", "1": "plain", "2": "plain"},
    "quiet": dict.fromkeys(_TRUE, "quiet"),
    "progress_bar": dict.fromkeys(_TRUE, "live"),
}


def plain_name(word: str) -> str:
    """`--Learning-Rate` or `ppo.learning_rate` as a table has it: learning_rate."""
    return re.sub(r"[-\s]", "_", word.lstrip("-").rpartition(".")[2]).lower()


def key_for(word: str, keys: Collection[str]) -> str | None:
    """Our key for what others call `word`, or for a key whose section is missing or wrong; None if there is none among `keys`."""
    name = plain_name(word)
    known = {*keys, "algo", "env", "recipe", "experiment", "env.kwargs"}
    if name in ("algo", "env", "seed", "recipe", "experiment"):
        return name
    meant = [key for key in _KEYS.get(name, "").split() if key in known or key.startswith("env.kwargs.")]
    sections = ("algo", "algo.search", "algo.planner", "loop", "env", "log", "runtime")
    exact = [f"{section}.{name}" for section in sections if f"{section}.{name}" in known]
    return next(iter([*exact, *meant]), None)


def as_typed(word: str, value: str, key: str) -> str:
    """What to type instead of `word=value`, with what else has to be known."""
    name = plain_name(word)
    value = _VALUES.get(name, {}).get(value.lower(), value)
    if key == "algo":
        value = value.lower()
    if key == "algo.num_minibatches" and "batch_size" in name:
        return "algo.num_minibatches=N: a rollout of algo.rollout_length * env.num_envs steps is dealt into N minibatches"
    if name == "betas":
        first, _, second = value.strip("[]()").partition(",")
        return f"algo.adam_beta1={first.strip() or 'VALUE'} algo.adam_beta2={second.strip() or 'VALUE'}"
    return f"{key}={value or 'VALUE'}"
