"""Mathematics shared by the algorithms: pure functions of tensors, each with its equation."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Raise a ValueError that prints every shape unless all are equal."""
    if len({t.shape for t in tensors.values()}) > 1:
        raise ValueError("shapes must be equal, got " + ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items()))


def reverse_scan(x: Tensor, decay: Tensor) -> Tensor:
    """Solve y[t] = x[t] + decay[t] * y[t + 1] with y[T] = 0.

    By recursive doubling (Hillis and Steele 1986): ceil(log2 T) vector operations instead of T, so that a rollout of one env and 2048 steps
    costs as much as one of 64 envs and 32 steps.

    Args:
        x: [T, ...].
        decay: [T, ...], same shape.

    Returns:
        [T, ...] y.
    """
    check_shapes(x=x, decay=decay)
    y, span = x, 1
    while span < len(x):
        y = torch.cat((y[:-span] + decay[:-span] * y[span:], y[-span:]))
        decay = torch.cat((decay[:-span] * decay[span:], torch.zeros_like(decay[-span:])))
        span *= 2
    return y


def gae(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, is_last: Tensor, *, discount: float, lam: float) -> Tensor:
    """Generalised advantage estimates.

    Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16. A truncated step bootstraps from `next_value` but does
    not pass advantage across the episode boundary; a terminated step does neither. `lam=1` gives n-step advantages.

    Args:
        reward: [T, B] reward for action t.
        value: [T, B] V(obs_t) under the behaviour policy.
        next_value: [T, B] V(next_obs_t), where next_obs is never a reset observation.
        terminated: [T, B] bool.
        is_last: [T, B] bool, terminated or truncated.
        discount: per-step gamma in [0, 1].
        lam: trace decay in [0, 1].

    Returns:
        [T, B] advantages; add `value` for lambda-returns.

    Raises:
        ValueError: if the five tensors do not share one [T, B] shape.
    """
    check_shapes(reward=reward, value=value, next_value=next_value, terminated=terminated, is_last=is_last)
    delta = reward + discount * next_value * ~terminated - value
    return reverse_scan(delta, discount * lam * (~is_last).to(delta.dtype))


def q_lambda_returns(reward: Tensor, next_value: Tensor, terminated: Tensor, is_last: Tensor, *, discount: float, lam: float) -> Tensor:
    """Targets of Q(lambda): G_t = r_t + gamma [(1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1}].

    Gallici et al. 2024, https://arxiv.org/abs/2407.04811, algorithm 1: Peng's Q(lambda), in which random actions do not cut the trace. The
    last step of an episode or of the rollout bootstraps from next_value alone, a terminated one not at all.

    Args:
        reward: [T, B].
        next_value: [T, B] max_a Q(next_obs_t, a), where next_obs is never a reset observation.
        terminated: [T, B] bool.
        is_last: [T, B] bool, terminated or truncated.
        discount: per-step gamma in [0, 1].
        lam: trace decay in [0, 1].

    Returns:
        [T, B] of the actions taken.
    """
    check_shapes(reward=reward, next_value=next_value, terminated=terminated, is_last=is_last)
    trace = lam * (~is_last).to(reward.dtype)
    trace[-1] = 0.0
    return reverse_scan(reward + discount * (1.0 - trace) * next_value * ~terminated, discount * trace)


def returns_to_go(reward: Tensor, final_value: Tensor, is_last: Tensor, *, discount: float) -> Tensor:
    """Discounted return from each step to the end of its episode: G_t = r_t + gamma G_{t+1}.

    Sutton and Barto 2018, eq. 3.9.

    Args:
        reward: [T, B].
        final_value: [T, B] value after the last step of an episode: 0 where it terminated, an estimate of V(next_obs)
            where it was truncated. Used only where `is_last`.
        is_last: [T, B] bool.
        discount: per-step gamma in [0, 1].

    Returns:
        [T, B] returns; meaningless for steps whose episode does not end inside the T steps.
    """
    check_shapes(reward=reward, final_value=final_value, is_last=is_last)
    ends = is_last.to(reward.dtype)
    return reverse_scan(reward + discount * final_value * ends, discount * (1.0 - ends))


def rewards_so_far(reward: Tensor, is_last: Tensor) -> Tensor:
    """Undiscounted rewards of the same episode before each step: 0 where an episode begins.

    Args:
        reward: [T, B].
        is_last: [T, B] bool.

    Returns:
        [T, B]; too little for steps whose episode began before the T steps.
    """
    check_shapes(reward=reward, is_last=is_last)
    goes_on = torch.cat((torch.zeros_like(reward[:1]), (~is_last[:-1]).to(reward.dtype)))
    before = torch.cat((torch.zeros_like(reward[:1]), reward[:-1])) * goes_on
    return reverse_scan(before.flip(0), goes_on.flip(0)).flip(0)


def n_step_advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, is_last: Tensor, *, discount: float, num_steps: int
) -> Tensor:
    """A_t = r_t + gamma r_{t+1} + ... + gamma^n V_{t+n} - V_t, with fewer steps where the episode or the T steps end on the way.

    Mnih et al. 2016, https://arxiv.org/abs/1602.01783, section 3: the sum of n discounted temporal-difference errors. n = 1 is `gae` with
    lambda = 0, and n = T is `gae` with lambda = 1.

    Args:
        reward, value, next_value, terminated, is_last: as of `gae`.
        discount: per-step gamma in [0, 1].
        num_steps: n, at least 1.

    Returns:
        [T, B].
    """
    check_shapes(reward=reward, value=value, next_value=next_value, terminated=terminated, is_last=is_last)
    delta = reward + discount * next_value * ~terminated - value
    decay = discount * (~is_last[:-1]).to(delta.dtype)
    advantage = delta
    for _ in range(min(num_steps, len(reward)) - 1):
        advantage = torch.cat((delta[:-1] + decay * advantage[1:], delta[-1:]))
    return advantage


def window_starts(is_last: Tensor, length: int, *, most: int) -> tuple[Tensor, Tensor]:
    """First steps of windows of `length` steps that lie within one episode: at most `most` windows, spread evenly over time.

    Args:
        is_last: [T, B] bool: the episode ended with the step.
        length: steps of a window.
        most: windows.

    Returns:
        [n] long time and [n] long environment of the first steps.
    """
    num_starts = max(0, len(is_last) - length + 1)
    ends = torch.zeros_like(is_last[:num_starts])
    for k in range(length - 1):
        ends |= is_last[k : k + num_starts]
    t, b = (~ends).nonzero(as_tuple=True)
    stride = max(1, -(-len(t) // most))
    return t[::stride], b[::stride]


def normalize(x: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Shift and scale to zero mean and unit (biased) standard deviation; a constant becomes 0."""
    std, mean = torch.std_mean(x, correction=0)
    return (x - mean) / (std + epsilon)


def explained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - Var[target - prediction] / Var[target]: 1 is perfect, 0 is no better than the mean; NaN for a constant target."""
    variance = target.var(correction=0)
    return torch.where(variance > 0, 1.0 - (target - prediction).var(correction=0) / variance, torch.nan)


def ppo_clip_loss(log_ratio: Tensor, advantage: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate objective, negated: -E[min(r A, clip(r, 1 - eps, 1 + eps) A)].

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7.

    Args:
        log_ratio: [B] log pi(a|s) - log pi_old(a|s).
        advantage: [B].
        clip: eps in (0, 1).

    Returns:
        The loss, and its derivative with respect to log_ratio [B].
    """
    ratio = log_ratio.exp()
    objective = ratio * advantage
    clipped = ratio.clamp_(1.0 - clip, 1.0 + clip).mul_(advantage)
    # d(r A) / d(log r) = r A, and 0 where the clipped term is the smaller one.
    slope = torch.where(objective <= clipped, objective, 0.0).mul_(-1.0 / len(objective))
    return -torch.min(objective, clipped).mean(), slope


def surrogate_loss(log_ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """Importance-weighted surrogate objective, negated: -E[r A], and its derivative with respect to log_ratio [B].

    Schulman et al. 2017, eq. 6.
    """
    objective = log_ratio.exp() * advantage
    return -objective.mean(), objective / -len(objective)


def spo_loss(log_ratio: Tensor, advantage: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """Surrogate with a quadratic penalty on the ratio, negated: -E[r A - |A| (r - 1)^2 / (2 eps)], greatest at r = 1 +- eps.

    Xie et al. 2025, https://arxiv.org/abs/2401.16025, "simple policy optimization". Unlike the clipped objective it has a gradient
    beyond the interval, which leads back into it.

    Args:
        log_ratio: [B] log pi(a|s) - log pi_old(a|s).
        advantage: [B].
        clip: eps.

    Returns:
        The loss and its derivative with respect to log_ratio [B].
    """
    ratio, size = log_ratio.exp(), advantage.abs() / clip
    move = ratio - 1.0
    loss = 0.5 * size * move.square() - ratio * advantage
    return loss.mean(), ratio * (size * move - advantage) / len(loss)


def log_prob_loss(log_prob: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """Score-function objective, negated: -E[log pi(a|s) A], and its derivative with respect to log_prob [B].

    Williams 1992, https://doi.org/10.1007/BF00992696.
    """
    return -(log_prob * advantage).mean(), advantage / -len(advantage)


def value_loss(value: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """0.5 E[(v - R)^2] of [B], and its derivative with respect to value [B]."""
    error = value - target
    return 0.5 * error.square().mean(), error / len(error)


def huber_loss(error: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """E[w h(e)], h(e) = e^2 / 2 up to |e| = 1 and |e| - 1/2 beyond, and its derivative with respect to the errors [B].

    Mnih et al. 2015, https://doi.org/10.1038/nature14236, who clip errors to [-1, 1].

    Args:
        error: [B] value - target.
        weight: [B] w.
    """
    clipped = error.clamp(-1.0, 1.0)
    slope = clipped * (weight / len(error))
    return (slope * (error - 0.5 * clipped)).sum(), slope


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """0.5 E[max((v - R)^2, (clip(v, v_old +- eps) - R)^2)] of [B], and its derivative with respect to value [B].

    The value loss of OpenAI baselines' ppo2.
    """
    move = value - old_value
    error, clipped_error = value - target, old_value + move.clamp(-clip, clip) - target
    # Beyond the bound the clipped value is constant; within it both errors are equal up to rounding.
    outside = (move.abs() > clip) & (clipped_error.square() > error.square())
    loss = 0.5 * torch.where(outside, clipped_error, error).square().mean()
    return loss, torch.where(outside, 0.0, error) / len(error)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(pi_old || pi) from samples of pi_old: E[(r - 1) - log r], unbiased and never negative (Schulman 2020, "k3")."""
    return (torch.expm1(log_ratio) - log_ratio).mean()


_SQUASH_EPSILON = 1e-3


def squash(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x, which maps returns of any size to numbers of a similar size.

    Pohlen et al. 2018, https://arxiv.org/abs/1805.11593, proposition A.2; eps is 0.001.
    """
    return x.sign() * ((x.abs() + 1.0).sqrt() - 1.0) + _SQUASH_EPSILON * x


def unsquash(y: Tensor) -> Tensor:
    """The inverse of `squash`, in a form without cancellation near 0."""
    eps, size = _SQUASH_EPSILON, y.abs() + 1.0 + _SQUASH_EPSILON
    root = 2.0 * size / ((1.0 + 4.0 * eps * size).sqrt() + 1.0)
    return y.sign() * (root.square() - 1.0)


def two_hot(x: Tensor, *, limit: float, num_bins: int) -> Tensor:
    """Distributions [*, num_bins] over evenly spaced numbers in [-limit, limit], whose means are x [*].

    Only the two neighbouring bins have weight (Schrittwieser et al. 2020, appendix F). x is clipped to the limits.
    """
    at = (x.clamp(-limit, limit) + limit) * ((num_bins - 1) / (2.0 * limit))
    low = at.floor().clamp(max=num_bins - 2)
    share = at - low
    out = x.new_zeros(*x.shape, num_bins)
    out.scatter_(-1, low.long().unsqueeze(-1), (1.0 - share).unsqueeze(-1))
    return out.scatter_(-1, low.long().unsqueeze(-1) + 1, share.unsqueeze(-1))


def n_step_returns(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, *, num_steps: int, discount: float
) -> Tensor:
    """G_t = r_t + d r_{t+1} + ... + d^{n-1} r_{t+n-1} + d^n V_{t+n}, or less where the episode ends on the way.

    Schrittwieser et al. 2020, appendix G. A negative d is for two players who take turns: values of one are losses of the other.

    Args:
        reward: [N, L] of consecutive steps; steps after the end of an episode are ignored.
        value: [N, L] of the positions in which these steps were taken.
        next_value: [N, L] of the positions that they led to; used only where an episode was truncated.
        terminated: [N, L] bool.
        truncated: [N, L] bool.
        num_steps: n, below L.
        discount: d in [-1, 1].

    Returns:
        [N, L - n] of the first L - n steps.
    """
    check_shapes(reward=reward, value=value, next_value=next_value, terminated=terminated, truncated=truncated)
    going = (~(terminated | truncated)).to(reward.dtype).unfold(1, num_steps, 1)[:, :-1].cumprod(-1)  # [N, L - n, n] after each step
    before = torch.cat([torch.ones_like(going[..., :1]), going[..., :-1]], dim=-1)
    weight = before * discount ** torch.arange(num_steps, dtype=reward.dtype, device=reward.device)
    gained = reward + discount * next_value * truncated
    collected = (weight * gained.unfold(1, num_steps, 1)[:, :-1]).sum(-1)
    return collected + discount**num_steps * going[..., -1] * value[:, num_steps:]


def distillation_loss(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a policy that imitates another, E[-sum_a pi(a) log pi_hat(a)], and its derivative with respect to logits [B, A].

    Racaniere et al. 2017, https://arxiv.org/abs/1707.06203, section 3.3, which prints it without the minus. Minimised as printed, it would
    lead the imitator to the teacher's least probable actions.

    Args:
        logits: [B, A] of the imitator, pi_hat.
        teacher: [B, A] logits of pi, without gradient.
    """
    check_shapes(logits=logits, teacher=teacher)
    log_probs, target = logits.log_softmax(-1), teacher.softmax(-1)
    return -(target * log_probs).sum(-1).mean(), (log_probs.exp() - target) / len(logits)


def categorical_kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) [B] of the distributions with logits p and q, [B, A] each."""
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of x [B] and y [B]; NaN if either is constant."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()
