"""Compiled kernels for small MLPs on a CPU: forward, acting, and whole gradient steps of policy-gradient losses.

At a few hundred rows, the overhead of each torch operation exceeds its arithmetic; one call here replaces some fifty. Gradient steps
process rows in tiles of `_TILE`, whose activations lie feature-major, [feature, row]: rows fill the vector registers whatever the widths of
the layers.

Parameters lie in one float32 vector, `theta`. `layers` [L, 4] has one row per linear layer: inputs, outputs, and the offsets of its weight
[outputs, inputs] and bias [outputs] in theta. The first `num_policy` layers are the policy's, the others the critic's; without others, the
policy's last output is the value. `log_std_at` is the offset of a Gaussian's log standard deviations, or -1 for a categorical distribution.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from rlx.kernel_memory import DOUBLES, FLOATS, INTEGERS, doubles, floats, integers, matrix, vector
from rlx.nn.kernel_parts import (
    SILU,
    activate_and_differentiate,
    activate_as,
    adam,
    add_inner_products,
    add_product,
    differentiate_as,
    exact,
    normalize_rows,
    sum_of,
    sum_of_squares,
)

_TILE = 128
"""Rows of a tile: a layer of 64 features and its gradient stay in the first-level cache."""
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

CLIP, SURROGATE, LOG_PROB, SPO = 0, 1, 2, 3
"""Objectives of `gradient_steps`, see `rlx.nn.policy_gradient`."""


@exact
def forward(theta, size, layers, first, last, activation, x, num_rows, space, space_size, out):
    """Layers [first, last) applied to x [B, D] into out [B, *]; `space` [2 * space_size >= 2 * B * widest] holds what lies between."""
    for i in range(first, last):
        inputs, outputs, weight, bias = layers[4 * i], layers[4 * i + 1], layers[4 * i + 2], layers[4 * i + 3]
        y_data, at = space, (i % 2) * space_size
        if i == last - 1:
            y_data, at = out, np.int64(0)
        y, b = matrix(y_data, at, num_rows, outputs), vector(theta, bias, outputs)
        for r in range(num_rows):
            for k in range(outputs):
                y[r, k] = b[k]
        rows = matrix(x, 0, num_rows, inputs)
        if i > first:
            rows = matrix(space, ((i - 1) % 2) * space_size, num_rows, inputs)
        w = matrix(theta, weight, outputs, inputs)
        add_inner_products(rows, w, vector(y_data, at, num_rows * outputs), num_rows, outputs, inputs)
        if i < last - 1:
            activate_as(activation, y, num_rows, outputs)


@exact
def act(block):
    """Normalise observations [B, D] in place, apply the policy, and choose: `indices` [B] if categorical, `actions` [B, A] if Gaussian.

    `noise` is read if `samples`, else the mode is taken: [B, 1] uniform in [0, 1) if categorical, [B, A] standard normal if Gaussian.
    """
    theta, size, layers, num_policy, num_actions = floats(block[0]), block[1], integers(block[2]), block[3], block[4]
    log_std_at, activation, obs, num_rows = block[5], block[6], floats(block[7]), block[8]
    scale, shift, bound, noise, samples = floats(block[9]), floats(block[10]), floats(block[11])[0], doubles(block[12]), block[13] != 0
    space, space_size, params = floats(block[14]), block[15], floats(block[16])
    indices, actions = integers(block[17]), floats(block[18])
    num_features, num_outputs = layers[0], layers[4 * (num_policy - 1) + 1]
    out = matrix(params, 0, num_rows, num_outputs)
    x = matrix(obs, 0, num_rows, num_features)
    for i in range(num_rows):
        for k in range(num_features):
            v = x[i, k] * scale[k] + shift[k]
            v = bound if v > bound else v
            x[i, k] = -bound if v < -bound else v
    forward(theta, size, layers, np.int64(0), num_policy, activation, obs, num_rows, space, space_size, params)
    for i in range(num_rows):
        if log_std_at >= 0:
            for a in range(num_actions):
                actions[i * num_actions + a] = out[i, a]
                if samples:
                    actions[i * num_actions + a] += np.float32(noise[i * num_actions + a]) * math.exp(theta[log_std_at + a])
            continue
        best = 0
        for a in range(1, num_actions):
            best = a if out[i, a] > out[i, best] else best
        indices[i] = best
        if samples:
            total, highest = 0.0, out[i, best]
            for a in range(num_actions):
                total += math.exp(out[i, a] - highest)
            left = noise[i] * total
            for a in range(num_actions):
                left -= math.exp(out[i, a] - highest)
                if left < 0.0:
                    indices[i] = a
                    break
    return 0


@exact
def _log_softmax(x, rows, n):
    """Logits x [rows, n] to log-probabilities, in place."""
    for j in range(n):
        highest = x[0, j]
        for a in range(1, rows):
            highest = max(highest, x[a, j])
        total = np.float32(0)
        for a in range(rows):
            total += math.exp(x[a, j] - highest)
        log_total = math.log(total) + highest
        for a in range(rows):
            x[a, j] -= log_total


@exact
def _objective(kind, log_ratio, advantage, clip):
    """The policy objective of one row, to be maximised, and its derivative with respect to the action's log-probability."""
    if kind == LOG_PROB:
        return log_ratio * advantage, advantage
    ratio = math.exp(log_ratio)
    objective = ratio * advantage
    if kind == SURROGATE:
        return objective, objective
    if kind == SPO:
        move, size = ratio - np.float32(1), abs(advantage) / clip
        return objective - np.float32(0.5) * size * move * move, ratio * (advantage - size * move)
    clipped = min(max(ratio, np.float32(1) - clip), np.float32(1) + clip) * advantage
    if objective <= clipped:
        return objective, objective
    return (clipped, np.float32(0)) if objective > clipped else (objective, objective)  # the last if either is not a number


@exact
def _value_loss(value, old_value, target, clip):
    """0.5 times the squared error of one row, clipped if clip >= 0, and its derivative."""
    error = value - target
    if clip >= np.float32(0):
        move = value - old_value
        clipped_error = old_value + min(max(move, -clip), clip) - target
        if abs(move) > clip and clipped_error * clipped_error > error * error:
            return np.float32(0.5) * clipped_error * clipped_error, np.float32(0)
    return np.float32(0.5) * error * error, error


@exact
def _categorical_loss(logits, d, index, rows, old_log_prob, old_params, advantage, log_ratios, num_actions, n, kind, clip, kl_coef,
                      entropy_coef, weight):  # fmt: skip
    """The loss of n rows with logits [A, n]: writes its derivative [A, n] into d and log-ratios, returns policy loss and entropy."""
    _log_softmax(logits, num_actions, n)
    policy_loss = entropies = 0.0
    for j in range(n):
        row = rows[j]
        chosen = index[row]
        entropy = np.float32(0)
        for a in range(num_actions):
            d[a, j] = math.exp(logits[a, j])
            entropy -= d[a, j] * logits[a, j]
        log_ratios[j] = logits[chosen, j] - old_log_prob[row]
        objective, slope = _objective(kind, log_ratios[j], advantage[j], clip)
        kl, log_total = np.float32(0), np.float32(0)
        if kl_coef > np.float32(0):
            highest, total = old_params[row, 0], np.float32(0)
            for a in range(1, num_actions):
                highest = max(highest, old_params[row, a])
            for a in range(num_actions):
                total += math.exp(old_params[row, a] - highest)
            log_total = math.log(total) + highest
            for a in range(num_actions):
                log_old = old_params[row, a] - log_total
                kl += math.exp(log_old) * (log_old - logits[a, j])
        policy_loss += (kl_coef * kl - objective) * weight
        entropies += entropy * weight
        for a in range(num_actions):
            p = d[a, j]
            g = slope * p + entropy_coef * p * (logits[a, j] + entropy)
            if kl_coef > np.float32(0):
                g += kl_coef * (p - math.exp(old_params[row, a] - log_total))
            d[a, j] = g * weight
        d[chosen, j] -= slope * weight
    return policy_loss, entropies


@exact
def _gaussian_loss(mean, d, log_std, d_log_std, action, rows, old_log_prob, old_params, advantage, log_ratios, num_actions, n, kind, clip,
                   kl_coef, entropy_coef, weight):  # fmt: skip
    """As `_categorical_loss`, of means [A, n] and log standard deviations [A], whose gradient is added to d_log_std."""
    constant = np.float32(num_actions * _HALF_LOG_2PI)
    for a in range(num_actions):
        constant += log_std[a]
    policy_loss = entropies = 0.0
    for j in range(n):
        row = rows[j]
        squares, kl = np.float32(0), np.float32(0)
        for a in range(num_actions):
            z = (action[row, a] - mean[a, j]) * math.exp(-log_std[a])
            squares += z * z
        log_ratios[j] = np.float32(-0.5) * squares - constant - old_log_prob[row]
        objective, slope = _objective(kind, log_ratios[j], advantage[j], clip)
        for a in range(num_actions):
            inverse_std = math.exp(-log_std[a])
            z = (action[row, a] - mean[a, j]) * inverse_std
            g_mean, g_log_std = -slope * z * inverse_std, -slope * (z * z - np.float32(1)) - entropy_coef
            if kl_coef > np.float32(0):
                old_log_std = old_params[row, num_actions + a]
                variance_ratio = math.exp(np.float32(2) * (old_log_std - log_std[a]))
                z = (mean[a, j] - old_params[row, a]) * inverse_std
                kl += np.float32(0.5) * (variance_ratio + z * z - np.float32(1)) + log_std[a] - old_log_std
                g_mean += kl_coef * z * inverse_std
                g_log_std += kl_coef * (np.float32(1) - variance_ratio - z * z)
            d[a, j] = g_mean * weight
            d_log_std[a] += g_log_std * weight
        policy_loss += (kl_coef * kl - objective) * weight
        entropies += (constant + np.float32(0.5 * num_actions)) * weight
    return policy_loss, entropies


@exact
def gradient_steps(theta, size, grad, mean, square, num_steps, layers, num_layers, num_policy, num_actions, log_std_at, activation,
                   features, num_rows, index, action, old_log_prob, old_params, num_old, old_value, advantage, target, order, batch_size,
                   kind, normalize, clip, kl_coef, value_clip, value_coef, entropy_coef, learning_rate, max_norm, epsilon, beta1, beta2,
                   space, widest, num_hidden, log_ratios, stats, only_gradient, holes, num_holes):  # fmt: skip
    """Take a gradient step on each `batch_size` rows of `order` [N]; returns the number of steps, which is less if one was not finite.

    A step that is not finite changes nothing. With `only_gradient` the first minibatch's gradient is left in `grad`, and nothing else
    changes; there `order` may have fewer rows than the data. Rows are those of features [N, D], index [N] or action [N, A], old_log_prob,
    old_value, advantage and target [N] and old_params [N, *]. Writes log-ratios [N] and, for each step, its stats: policy loss, value
    loss, entropy and gradient norm. `holes` [K, 4] are blocks of weights that stay 0. `space` has room for `_TILE` rows of all layers'
    outputs and for `batch_size` numbers. For both see `rlx.nn.compiled`.
    """
    layers = matrix(layers, 0, num_layers, 4)
    num_features, one = layers[0, 0], np.int64(1)
    theta, grad, mean, square = vector(theta, 0, size), vector(grad, 0, size), vector(mean, 0, size), vector(square, 0, size)
    features, action, old_params = (
        matrix(features, 0, num_rows, num_features),
        matrix(action, 0, num_rows, num_actions),
        matrix(old_params, 0, num_rows, num_old),
    )
    order, log_ratios = vector(order, 0, num_rows), vector(log_ratios, 0, num_rows)
    num_slopes = num_hidden if activation >= SILU else 0
    tiles = matrix(space, 0, num_features + num_hidden + 2 * widest + 5 + num_slopes, _TILE)
    x, hidden = tiles[:num_features], tiles[num_features : num_features + num_hidden]
    used = num_features + num_hidden
    d, spare = tiles[used : used + widest], tiles[used + widest : used + 2 * widest]
    spill, d_value = tiles[used + 2 * widest : used + 2 * widest + 4], tiles[used + 2 * widest + 4]
    slopes = tiles[used + 2 * widest + 5 :]
    all_weights = vector(space, len(tiles) * _TILE, batch_size)
    for r in range(4):
        for j in range(_TILE):
            spill[r, j] = np.float32(0)
    step = 0
    for start in range(0, num_rows, batch_size):
        rows = order[start : start + batch_size]
        batch = len(rows)
        weight = np.float32(1.0 / batch)
        weights = all_weights[:batch]
        for j in range(batch):
            weights[j] = advantage[rows[j]]
        if normalize != 0:
            normalize_rows(weights)
        for i in range(size):
            grad[i] = np.float32(0)
        policy_loss = value_loss = entropy = 0.0
        for begin in range(0, batch, _TILE):
            n = min(_TILE, batch - begin)
            tile = rows[begin : begin + n]
            for j in range(n):
                for k in range(num_features):
                    x[k, j] = features[tile[j], k]

            at, source, out = 0, x, x
            for i in range(num_layers):
                inputs, outputs, w_at, b_at = layers[i, 0], layers[i, 1], layers[i, 2], layers[i, 3]
                if i == num_policy:
                    source = x
                y = hidden[at : at + outputs]
                for r in range(outputs):
                    for j in range(n):
                        y[r, j] = theta[b_at + r]
                add_product(theta, w_at, inputs, one, outputs, inputs, source, y, spill, n)
                if i != num_policy - 1 and i != num_layers - 1:
                    activate_and_differentiate(activation, y, slopes[at : at + outputs], outputs, n)
                if i == num_policy - 1:
                    out = y
                at, source = at + outputs, y

            value = source[len(source) - 1]
            for j in range(n):
                loss, slope = _value_loss(value[j], old_value[tile[j]], target[tile[j]], value_clip)
                value_loss += loss * weight
                d_value[j] = value_coef * slope * weight

            at = num_hidden
            for i in range(num_layers - 1, -1, -1):
                inputs, outputs, w_at, b_at = layers[i, 0], layers[i, 1], layers[i, 2], layers[i, 3]
                at -= outputs
                if i == num_policy - 1:
                    ratios, advantages = log_ratios[start + begin : start + begin + n], weights[begin : begin + n]
                    if log_std_at >= 0:
                        log_std, d_log_std = theta[log_std_at : log_std_at + num_actions], grad[log_std_at : log_std_at + num_actions]
                        lost, gained = _gaussian_loss(out, d, log_std, d_log_std, action, tile, old_log_prob, old_params, advantages,
                                                      ratios, num_actions, n, kind, clip, kl_coef, entropy_coef, weight)  # fmt: skip
                    else:
                        lost, gained = _categorical_loss(out, d, index, tile, old_log_prob, old_params, advantages, ratios, num_actions, n,
                                                         kind, clip, kl_coef, entropy_coef, weight)  # fmt: skip
                    policy_loss += lost
                    entropy += gained
                if i == num_layers - 1:
                    row = d[outputs - 1]
                    for j in range(n):
                        row[j] = d_value[j]
                is_first = i == 0 or i == num_policy
                source = x if is_first else hidden[at - inputs : at]
                add_inner_products(d, source, grad[w_at : w_at + outputs * inputs], outputs, inputs, n)
                for r in range(outputs):
                    grad[b_at + r] += sum_of(d[r], n)
                if not is_first:
                    for r in range(inputs):
                        for j in range(n):
                            spare[r, j] = np.float32(0)
                    add_product(theta, w_at, one, inputs, inputs, outputs, d, spare, spill, n)
                    differentiate_as(activation, spare, source, slopes[at - inputs : at], inputs, n)
                    d, spare = spare, d

        for i in range(num_holes):
            at, height, width, stride = holes[4 * i], holes[4 * i + 1], holes[4 * i + 2], holes[4 * i + 3]
            for r in range(height):
                for k in range(width):
                    grad[at + r * stride + k] = np.float32(0)
        norm = math.sqrt(sum_of_squares(grad))
        stats[4 * step], stats[4 * step + 1], stats[4 * step + 2], stats[4 * step + 3] = policy_loss, value_loss, entropy, norm
        if only_gradient != 0:
            return 0
        if not (norm < np.inf and abs(policy_loss + value_coef * value_loss - entropy_coef * entropy) < np.inf):
            return step
        step += 1
        taken = num_steps + step
        factor = np.float32(max_norm / norm) if norm > max_norm else np.float32(1)
        step_size, scale = learning_rate / (1.0 - beta1**taken), math.sqrt(1.0 - beta2**taken)
        adam(theta, grad, mean, square, factor, np.float32(step_size), np.float32(scale), np.float32(epsilon), np.float32(1.0 - beta1),
             np.float32(1.0 - beta2))  # fmt: skip
    return step


_F, _D, _I = FLOATS, DOUBLES, INTEGERS
_i, _f, _d = types.int64, types.float32, types.float64
SIGNATURES = {
    forward: types.none(_F, _i, _I, _i, _i, _i, _F, _i, _F, _i, _F),
    act: _i(_I),
    gradient_steps: _i(_F, _i, _F, _F, _F, _i, _I, _i, _i, _i, _i, _i, _F, _i, _I, _F, _F, _F, _i, _F, _F, _F, _I, _i, _i, _i, _f, _f, _f,
                       _f, _f, _d, _d, _d, _d, _d, _F, _i, _i, _F, _D, _i, _I, _i),
}  # fmt: skip
"""What is compiled, and for which arguments; `rlx.compiled_code` calls it."""
