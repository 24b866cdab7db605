"""PPO on CartPole with the whole training loop compiled by JAX, in the manner of PureJaxRL: the peer of `python tests/bench.py cartpole`.

    python tests/bench_jax.py SEED    prints the env steps per second, without the time of compiling

Clipped surrogate, GAE, Adam, gradients clipped by global norm, two networks of 64-64 with tanh; 4 envs x 128 steps, 4 epochs x 4
minibatches. JAX is no dependency of rlx.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

ENVS, STEPS, EPOCHS, MINIBATCHES, UPDATES = 4, 128, 4, 4, 200
GAMMA, LAMBDA, CLIP, RATE, NORM = 0.99, 0.95, 0.2, 2.5e-4, 0.5


def env_step(state: Any, action: Any, key: Any) -> tuple[Any, Any, Any]:
    """CartPole-v1 of one env, which begins anew where it has ended: the next state (4 numbers, steps), the reward and the end."""
    (x, dx, theta, dtheta), steps = state
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    temp = (jnp.where(action == 1, 10.0, -10.0) + 0.05 * dtheta**2 * sin) / 1.1
    ddtheta = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    ddx = temp - 0.05 * ddtheta * cos / 1.1
    after = jnp.stack([x + 0.02 * dx, dx + 0.02 * ddx, theta + 0.02 * dtheta, dtheta + 0.02 * ddtheta])
    done = (jnp.abs(after[0]) > 2.4) | (jnp.abs(after[2]) > 0.2094395) | (steps + 1 >= 500)
    start = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
    return (jnp.where(done, start, after), jnp.where(done, 0, steps + 1)), 1.0, done


def make_mlp(key: Any, sizes: list[int], gain: float) -> list[Any]:
    gains = [2**0.5] * (len(sizes) - 2) + [gain]
    keys = jax.random.split(key, len(gains))
    shapes = itertools.pairwise(sizes)
    return [(jax.nn.initializers.orthogonal(g)(k, shape), jnp.zeros(shape[1])) for k, shape, g in zip(keys, shapes, gains, strict=True)]


def mlp(layers: list[Any], x: Any) -> Any:
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def loss(params: Any, batch: Any) -> Any:
    obs, action, old_log_prob, advantage, target = batch
    log_probs = jax.nn.log_softmax(mlp(params[0], obs))
    ratio = jnp.exp(jnp.take_along_axis(log_probs, action[:, None], 1)[:, 0] - old_log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
    return policy + 0.5 * 0.5 * ((mlp(params[1], obs)[:, 0] - target) ** 2).mean()


def gradient_step(carry: Any, batch: Any) -> tuple[Any, None]:
    params, mean, square, count = carry
    grad = jax.grad(loss)(params, batch)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grad)))
    grad = jax.tree.map(lambda g: g * jnp.minimum(1.0, NORM / norm), grad)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grad)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, square, grad)
    c1, c2 = 1 - 0.9 ** (count + 1), 1 - 0.999 ** (count + 1)
    params = jax.tree.map(lambda p, m, v: p - RATE * (m / c1) / (jnp.sqrt(v / c2) + 1e-5), params, mean, square)
    return (params, mean, square, count + 1), None


def update(carry: Any, _: None) -> tuple[Any, Any]:
    """One iteration: collect, estimate advantages, learn; also returns how many episodes ended."""
    learner, states, key = carry

    def collect(carry: Any, _: None) -> tuple[Any, Any]:
        states, key = carry
        key, act_key, env_key = jax.random.split(key, 3)
        obs = states[0]
        logits = mlp(learner[0][0], obs)
        action = jax.random.categorical(act_key, logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        value = mlp(learner[0][1], obs)[:, 0]
        states, reward, done = jax.vmap(env_step)(states, action, jax.random.split(env_key, ENVS))
        return (states, key), (obs, action, log_prob, value, jnp.broadcast_to(reward, (ENVS,)), done)

    (states, key), (obs, action, log_prob, value, reward, done) = jax.lax.scan(collect, (states, key), None, STEPS)
    last = mlp(learner[0][1], states[0])[:, 0]

    def gae(carry: Any, step: Any) -> tuple[Any, Any]:
        following, next_value = carry
        value, reward, done = step
        following = reward + GAMMA * next_value * (1 - done) - value + GAMMA * LAMBDA * (1 - done) * following
        return (following, value), following

    _, advantage = jax.lax.scan(gae, (jnp.zeros(ENVS), last), (value, reward, done), reverse=True)
    data = jax.tree.map(lambda x: x.reshape(ENVS * STEPS, *x.shape[2:]), (obs, action, log_prob, advantage, advantage + value))

    def epoch(carry: Any, _: None) -> tuple[Any, None]:
        learner, key = carry
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, ENVS * STEPS)
        minibatches = jax.tree.map(lambda x: x[order].reshape(MINIBATCHES, -1, *x.shape[1:]), data)
        return (jax.lax.scan(gradient_step, learner, minibatches)[0], key), None

    (learner, key), _ = jax.lax.scan(epoch, (learner, key), None, EPOCHS)
    return (learner, states, key), done.sum()


@jax.jit
def train(key: Any) -> Any:
    """The whole run; the mean length of the episodes in the last tenth of it."""
    key, policy_key, critic_key, env_key = jax.random.split(key, 4)
    params = make_mlp(policy_key, [4, 64, 64, 2], 0.01), make_mlp(critic_key, [4, 64, 64, 1], 1.0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    states = jax.random.uniform(env_key, (ENVS, 4), minval=-0.05, maxval=0.05), jnp.zeros(ENVS, jnp.int32)
    _, ended = jax.lax.scan(update, ((params, zeros, zeros, 0), states, key), None, UPDATES)
    tenth = UPDATES // 10
    return tenth * ENVS * STEPS / jnp.maximum(1, ended[-tenth:].sum())


if __name__ == "__main__":
    seed = jax.random.PRNGKey(int(sys.argv[1]))
    begin = time.perf_counter()
    compiled = train.lower(seed).compile()
    compile_s = time.perf_counter() - begin
    compiled(seed).block_until_ready()
    begin = time.perf_counter()
    length = float(compiled(seed).block_until_ready())
    print(f"compiled in {compile_s:.1f} s; last episodes {length:.0f} steps", file=sys.stderr)
    print(UPDATES * ENVS * STEPS / (time.perf_counter() - begin))
