"""Compiled kernels for gradient steps of actor-critics from a replay, with small MLPs on a CPU: targets, values and policy.

As in `rlx.nn.kernels`, rows are processed in tiles of `_TILE`, whose activations lie feature-major, [feature, row], and the parameters of
a module lie in one float32 vector. `layers` [L, 4] has one row per linear layer: inputs, outputs, and the offsets of weight and bias. A
policy's weight is [outputs, inputs]. Those of K critics are [K, inputs, outputs] and [K, 1, outputs]; their last layer has one output.

Each kernel takes a block of addresses and integers, see `rlx.nn.compiled_off_policy`: first what changes from call to call, then what
describes the networks. A step whose loss or gradient is not finite changes nothing but the gradient.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from rlx.kernel_memory import INTEGERS, doubles, floats, integers, matrix, vector
from rlx.nn.kernel_parts import (
    BETA1,
    BETA2,
    activate,
    activate_backward,
    adam,
    add_inner_products,
    add_product,
    exact,
    sum_of,
    sum_of_squares,
)

_TILE = 128
"""Rows of a tile, as in `rlx.nn.kernels`."""
_HALF_LOG_2PI, _LOG_2 = 0.5 * math.log(2.0 * math.pi), math.log(2.0)
_LOG_STD_MIN, _LOG_STD_MAX = -20.0, 2.0  # as in `rlx.nn.squashed`

_NETWORKS = 16
"""Where the description of the networks begins in a block, as in `rlx.nn.compiled_off_policy`."""
_SPARE = 7
"""Rows of the space before the inputs: four that pad blocks of matrix products, and three for a number of each row."""


@exact
def _load(x, at, source, source_at, begin, n, width):
    """x[at + k, j] = row begin + j of the matrix [*, width] that begins at source[source_at]."""
    first = source_at + begin * width
    for k in range(width):
        row = x[at + k]
        for j in range(n):
            row[j] = source[first + j * width + k]


@exact
def _fill(rows, count, n):
    for r in range(count):
        row = rows[r]
        for j in range(n):
            row[j] = np.float32(0)


@exact
def _forward(theta, layers, member, of_critics, relu, x, hidden, spill, n):
    """All layers of a policy, or of a member of the critics, applied to x; writes the outputs of all layers into `hidden`."""
    one, at, source = np.int64(1), 0, x
    for i in range(len(layers)):
        inputs, outputs, weight, bias = layers[i, 0], layers[i, 1], layers[i, 2], layers[i, 3]
        y = hidden[at : at + outputs]
        b = bias + member * outputs
        for r in range(outputs):
            row, v = y[r], theta[b + r]
            for j in range(n):
                row[j] = v
        w = weight + member * inputs * outputs
        if of_critics:
            add_product(theta, w, one, outputs, outputs, inputs, source, y, spill, n)
        else:
            add_product(theta, w, inputs, one, outputs, inputs, source, y, spill, n)
        if i < len(layers) - 1:
            activate(y, outputs, n, relu)
        at, source = at + outputs, y


@exact
def _backward(theta, grad, layers, member, of_critics, relu, weights, x, hidden, d, spare, spill, n, d_inputs, first, num):
    """From the gradient d of the output, which it overwrites, to those of the parameters if `weights`, and of the inputs.

    Gradients of parameters are added to `grad`, those of the `num` inputs from `first` on to d_inputs [num, n].
    """
    one, at = np.int64(1), 0
    for i in range(len(layers)):
        at += layers[i, 1]
    for i in range(len(layers) - 1, -1, -1):
        inputs, outputs, weight, bias = layers[i, 0], layers[i, 1], layers[i, 2], layers[i, 3]
        at -= outputs
        source = x if i == 0 else hidden[at - inputs : at]
        w = weight + member * inputs * outputs
        if weights:
            b, out = bias + member * outputs, grad[w : w + inputs * outputs]
            if of_critics:
                add_inner_products(source, d, out, inputs, outputs, n)
            else:
                add_inner_products(d, source, out, outputs, inputs, n)
            for r in range(outputs):
                grad[b + r] += sum_of(d[r], n)
        if i == 0:
            if num > 0:  # only critics are asked for it
                add_product(theta, w + first * outputs, outputs, one, num, outputs, d, d_inputs, spill, n)
            return
        _fill(spare, inputs, n)
        if of_critics:
            add_product(theta, w, outputs, one, inputs, outputs, d, spare, spill, n)
        else:
            add_product(theta, w, one, inputs, inputs, outputs, d, spare, spill, n)
        activate_backward(spare, source, inputs, n, relu)
        d, spare = spare, d


@exact
def _bounded_std(log_std):
    return math.exp(min(max(log_std, np.float32(_LOG_STD_MIN)), np.float32(_LOG_STD_MAX)))


@exact
def _sample(params, noise, begin, action, log_prob, num_actions, n):
    """Actions [A, n] in (-1, 1) and log-probabilities [n] of a squashed Gaussian with params [2 A, n] for noise [*, A]."""
    constant = np.float32(num_actions * _HALF_LOG_2PI)
    for j in range(n):
        log_prob[j] = -constant
    for a in range(num_actions):
        for j in range(n):
            z, raw = noise[(begin + j) * num_actions + a], params[num_actions + a, j]
            log_std = min(max(raw, np.float32(_LOG_STD_MIN)), np.float32(_LOG_STD_MAX))
            u = params[a, j] + math.exp(log_std) * z
            softplus = math.log(np.float32(1) + math.exp(-np.float32(2) * abs(u))) + max(-np.float32(2) * u, np.float32(0))
            log_prob[j] -= np.float32(0.5) * z * z + log_std + np.float32(2) * (np.float32(_LOG_2) - u - softplus)
            action[a, j] = u
            if raw != raw:  # minimum and maximum hide it
                action[a, j] = log_prob[j] = raw
    activate(action, num_actions, n, False)


@exact
def _copy(source, target, rows, n):
    for r in range(rows):
        for j in range(n):
            target[r, j] = source[r, j]


@exact
def _choose(actor, layers, relu, is_gaussian, x, hidden, spill, params, noise, begin, action, log_prob, num_actions, n):
    """The policy at x into `hidden`, of which `params` are the last rows: samples and log-probabilities if Gaussian, else tanh."""
    _forward(actor, layers, 0, False, relu, x, hidden, spill, n)
    if is_gaussian:
        _sample(params, noise, begin, action, log_prob, num_actions, n)
    else:
        _copy(params, action, num_actions, n)
        activate(action, num_actions, n, False)


@exact
def _least(theta, layers, num_members, kept, relu, x, hidden, spill, n, least, which):
    """The least value [n] of the critics at x, and whose it is [n], as a float; keeps all hidden layers, one after another, if `kept`."""
    height = _height(layers)
    for k in range(num_members):
        at = k * height if kept else 0
        out = hidden[at : at + height]
        _forward(theta, layers, k, True, relu, x, out, spill, n)
        value, member = out[height - 1], np.float32(k)
        for j in range(n):
            if k == 0 or value[j] < least[j] or value[j] != value[j]:
                least[j], which[j] = value[j], member


@exact
def _height(layers):
    """Rows that the outputs of all layers take."""
    height = np.int64(0)
    for i in range(len(layers)):
        height += layers[i, 1]
    return height


@exact
def _is_finite(loss, norm):
    return norm < np.inf and abs(loss) < np.inf


@exact
def _adam(theta, grad, mean, square, norm, settings):
    """A clipped step with settings: learning rate, largest norm, epsilon, and steps taken before."""
    rate, most, epsilon, taken = settings[0], settings[1], settings[2], settings[3] + 1.0
    factor = np.float32(most / norm) if norm > most else np.float32(1)
    step_size, scale = rate / (1.0 - BETA1**taken), math.sqrt(1.0 - BETA2**taken)
    b1, b2 = np.float32(1.0 - BETA1), np.float32(1.0 - BETA2)
    adam(theta, grad, mean, square, factor, np.float32(step_size), np.float32(scale), np.float32(epsilon), b1, b2)


@exact
def _numbers(block, at):
    """Features, actions, critics, whether units are relu and whether the policy is Gaussian."""
    return block[at], block[at + 1], block[at + 4], block[at + 2] != 0, block[at + 3] != 0


@exact
def _networks(block, at):
    """The layers of the policy and of the critics, and the tiles [*, _TILE]."""
    actor_layers, critic_layers = matrix(integers(block[at + 5]), 0, block[at + 6], 4), matrix(integers(block[at + 7]), 0, block[at + 8], 4)
    return actor_layers, critic_layers, matrix(floats(block[at + 9]), 0, block[at + 10], _TILE), block[at + 11]


@exact
def _vectors(block, at):
    """The parameters of the policy and of the critics."""
    return vector(floats(block[at + 12]), 0, block[at + 13]), vector(floats(block[at + 14]), 0, block[at + 15])


@exact
def _moments(block, at, size):
    """The gradient and Adam's two moments."""
    return vector(floats(block[at + 16]), 0, size), vector(floats(block[at + 17]), 0, size), vector(floats(block[at + 18]), 0, size)


@exact
def targets(block):
    """Y [B] = reward + discount * value at the features [B, D] of successors, for noise [B, A].

    The value is the least of the critics'. For a squashed Gaussian alpha times the log-probability is subtracted. Otherwise the action is
    tanh of the policy's output, plus noise times a deviation, bounded.
    """
    at = _NETWORKS
    out, features, num_rows, noise = floats(block[0]), floats(block[1]), block[2], floats(block[3])
    reward, discount, alpha, settings = floats(block[4]), floats(block[5]), floats(block[6])[0], doubles(block[7])
    num_features, num_actions, num_members, relu, is_gaussian = _numbers(block, at)
    actor_layers, critic_layers, tiles, _ = _networks(block, at)
    actor, critics = _vectors(block, at)
    spill, log_prob, least, which = tiles[:4], tiles[4], tiles[5], tiles[6]
    x = tiles[_SPARE : _SPARE + num_features + num_actions]
    action, hidden = x[num_features:], tiles[_SPARE + num_features + num_actions :]
    actor_height = _height(actor_layers)
    params = hidden[actor_height - actor_layers[len(actor_layers) - 1, 1] : actor_height]
    deviation, bound = np.float32(settings[0]), np.float32(settings[1])
    _fill(spill, 4, _TILE)
    for begin in range(0, num_rows, _TILE):
        n = min(_TILE, num_rows - begin)
        _load(x, 0, features, 0, begin, n, num_features)
        _choose(actor, actor_layers, relu, is_gaussian, x, hidden, spill, params, noise, begin, action, log_prob, num_actions, n)
        if not is_gaussian and deviation > np.float32(0):
            for a in range(num_actions):
                for j in range(n):
                    v = action[a, j] + min(max(deviation * noise[(begin + j) * num_actions + a], -bound), bound)
                    v = np.float32(1) if v > np.float32(1) else v
                    action[a, j] = np.float32(-1) if v < np.float32(-1) else v
        _least(critics, critic_layers, num_members, False, relu, x, hidden, spill, n, least, which)
        for j in range(n):
            value = least[j] - alpha * log_prob[j] if is_gaussian else least[j]
            out[begin + j] = reward[begin + j] + discount[begin + j] * value
    return 0


@exact
def values_step(block):
    """One step of the critics at features [B, D] and actions [B, A] towards targets [B] with weights [B], each also [K, B, *].

    Writes the values [K, B] and stats: the loss, half the weighted squared error, and the gradient's norm. Returns 1 if it was not finite.
    """
    at = _NETWORKS
    out, stats, num_rows, settings = floats(block[0]), doubles(block[1]), block[2], doubles(block[3])
    features, of_each_features, action, of_each_action = floats(block[4]), block[5], floats(block[6]), block[7]
    target, of_each_target, weight, of_each_weight = floats(block[8]), block[9], floats(block[10]), block[11]  # whether it is [K, *]
    num_features, num_actions, num_members, relu, _ = _numbers(block, at)
    _, layers, tiles, widest = _networks(block, at)
    _, theta = _vectors(block, at)
    grad, mean, square = _moments(block, at, len(theta))
    spill, d_inputs = tiles[:4], tiles[:4]
    used = _SPARE + num_features + num_actions
    x, d, spare, hidden = (
        tiles[_SPARE:used],
        tiles[used : used + widest],
        tiles[used + widest : used + 2 * widest],
        tiles[used + 2 * widest :],
    )
    height = _height(layers)
    _fill(spill, 4, _TILE)
    for i in range(len(grad)):
        grad[i] = np.float32(0)
    loss, share = 0.0, np.float32(1.0 / num_rows)
    for k in range(num_members):
        for begin in range(0, num_rows, _TILE):
            n = min(_TILE, num_rows - begin)
            _load(x, 0, features, of_each_features * k * num_rows * num_features, begin, n, num_features)
            _load(x, num_features, action, of_each_action * k * num_rows * num_actions, begin, n, num_actions)
            _forward(theta, layers, k, True, relu, x, hidden, spill, n)
            value, d_value = hidden[height - 1], d[0]
            y, w = of_each_target * k * num_rows + begin, of_each_weight * k * num_rows + begin
            for j in range(n):
                error = value[j] - target[y + j]
                d_value[j] = error * (weight[w + j] * share)
                loss += np.float32(0.5) * d_value[j] * error
                out[k * num_rows + begin + j] = value[j]
            _backward(theta, grad, layers, k, True, relu, True, x, hidden, d, spare, spill, n, d_inputs, 0, 0)
    norm = math.sqrt(sum_of_squares(grad))
    stats[0], stats[1] = loss, norm
    if not _is_finite(loss, norm):
        return 1
    _adam(theta, grad, mean, square, norm, settings)
    return 0


@exact
def policy_step(block):
    """One step of the policy at features [B, D], with the critics as they are.

    The loss of a squashed Gaussian, for noise [B, A], is the mean of alpha times the log-probability less the least value. The logarithm of
    alpha, if it has a place in the policy's vector, takes part with its own loss, and is bounded afterwards. A policy whose action is tanh
    of its output maximises the first value. Writes stats: loss, gradient's norm, and the means of log-probabilities and log deviations.
    Returns 1 if it was not finite.
    """
    at = _NETWORKS
    stats, features, num_rows, noise = doubles(block[0]), floats(block[1]), block[2], floats(block[3])
    alpha, log_alpha_at, settings = floats(block[4])[0], block[5], doubles(block[6])
    num_features, num_actions, num_members, relu, is_gaussian = _numbers(block, at)
    actor_layers, critic_layers, tiles, widest = _networks(block, at)
    actor, critics = _vectors(block, at)
    grad, mean, square = _moments(block, at, len(actor))
    spill, log_prob, least, which = tiles[:4], tiles[4], tiles[5], tiles[6]
    used = _SPARE + num_features + num_actions
    x, action = tiles[_SPARE:used], tiles[_SPARE + num_features : used]
    d, spare, d_action = tiles[used : used + widest], tiles[used + widest : used + 2 * widest], tiles[used + 2 * widest :]
    actor_height, height = _height(actor_layers), _height(critic_layers)
    hidden = tiles[used + 2 * widest + num_actions :]
    params, of_critics = hidden[actor_height - actor_layers[len(actor_layers) - 1, 1] : actor_height], hidden[actor_height:]
    _fill(spill, 4, _TILE)
    for i in range(len(grad)):
        grad[i] = np.float32(0)
    share, members = np.float32(1.0 / num_rows), num_members if is_gaussian else 1
    total = log_probs = log_stds = 0.0
    for begin in range(0, num_rows, _TILE):
        n = min(_TILE, num_rows - begin)
        _load(x, 0, features, 0, begin, n, num_features)
        _choose(actor, actor_layers, relu, is_gaussian, x, hidden, spill, params, noise, begin, action, log_prob, num_actions, n)
        _least(critics, critic_layers, members, True, relu, x, of_critics, spill, n, least, which)
        _fill(d_action, num_actions, n)
        for k in range(members):
            d_value, member = d[0], np.float32(k)
            for j in range(n):
                d_value[j] = -share if which[j] == member else np.float32(0)
            own = of_critics[k * height : (k + 1) * height]
            _backward(critics, grad, critic_layers, k, True, relu, False, x, own, d, spare, spill, n, d_action, num_features, num_actions)
        for j in range(n):
            total -= least[j]
        if is_gaussian:
            slope = alpha * share
            for j in range(n):
                log_probs += log_prob[j]
            for a in range(num_actions):
                for j in range(n):
                    raw, act = params[num_actions + a, j], action[a, j]
                    d_u = d_action[a, j] * (np.float32(1) - act * act) + np.float32(2) * slope * act
                    inside = np.float32(_LOG_STD_MIN) < raw < np.float32(_LOG_STD_MAX)
                    d_log_std = d_u * _bounded_std(raw) * noise[(begin + j) * num_actions + a] - slope
                    d[a, j], d[num_actions + a, j] = d_u, d_log_std if inside else np.float32(0)
                    log_stds += raw
        else:
            for a in range(num_actions):
                for j in range(n):
                    d[a, j] = d_action[a, j] * (np.float32(1) - action[a, j] * action[a, j])
        _backward(actor, grad, actor_layers, 0, False, relu, True, x, hidden, d, spare, spill, n, d_action, 0, 0)
    loss, log_probs = total / num_rows, log_probs / num_rows
    if is_gaussian:
        loss += alpha * log_probs
        if log_alpha_at >= 0:
            grad[log_alpha_at] = np.float32(-(log_probs + settings[4]))
    norm = math.sqrt(sum_of_squares(grad))
    stats[0], stats[1], stats[2], stats[3] = loss, norm, log_probs, log_stds / (num_rows * num_actions)
    if not _is_finite(loss, norm):
        return 1
    _adam(actor, grad, mean, square, norm, settings)
    if log_alpha_at >= 0:
        actor[log_alpha_at] = np.float32(min(max(actor[log_alpha_at], np.float32(settings[5])), np.float32(settings[6])))
    return 0


SIGNATURES = {kernel: types.int64(INTEGERS) for kernel in (targets, values_step, policy_step)}
"""What is compiled, and for which arguments; `rlx.compiled_code` calls it."""
