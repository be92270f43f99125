"""C-MoE by its definition (METHOD part 6), in float64, with loops over tokens, leaders, bases and kernel positions.

Modules are read for their parameters only. Maps are [C, H, W], one token at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import erf


def randomise(module, seed: int) -> None:
    """Give every parameter and running statistic a value that no initialisation has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            value = torch.randn(tensor.shape, generator=generator)
            fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 1
            if name.endswith("running_var"):
                value = 0.5 + value.abs()
            elif tensor.dim() == 1:
                value = (1 if name.endswith("weight") else 0) + 0.3 * value
            elif not name.endswith("logits_LNE"):
                value = value * fan_in**-0.5
            tensor.copy_(value)


def array(tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def convolve(x_CHW, kernel_OCkk):
    """Convolution as networks mean it, stride 1, as many zeros around as keep height and width."""
    out_channels, _, size, _ = kernel_OCkk.shape
    _, height, width = x_CHW.shape
    padded = np.pad(x_CHW, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    y = np.zeros((out_channels, height, width))
    for row in range(size):
        for column in range(size):
            window = padded[:, row : row + height, column : column + width]
            y += np.einsum("oc,chw->ohw", kernel_OCkk[:, :, row, column], window)
    return y


def group_norm(x_CHW, module):
    """Mean 0 and variance 1 over each group of channels, in one sample."""
    channels = len(x_CHW)
    groups = max(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)
    parts = x_CHW.reshape(groups, -1)
    parts = (parts - parts.mean(axis=1, keepdims=True)) / np.sqrt(parts.var(axis=1, keepdims=True) + 1e-5)
    return parts.reshape(x_CHW.shape) * array(module.weight)[:, None, None] + array(module.bias)[:, None, None]


def batch_norm(x_TCHW, module):
    """Over all tokens in training, with the running statistics in evaluation."""
    mean, variance = x_TCHW.mean(axis=(0, 2, 3)), x_TCHW.var(axis=(0, 2, 3))
    if not module.training:
        mean, variance = array(module.running_mean), array(module.running_var)
    columns = [v[:, None, None] for v in (mean, np.sqrt(variance + 1e-5), array(module.weight), array(module.bias))]
    return (x_TCHW - columns[0]) / columns[1] * columns[2] + columns[3]


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def pointwise(x_CHW, module):
    return relu(group_norm(convolve(x_CHW, array(module[0].weight)), module[1]))


def route(condition_E, weight_LE, bias_L, top_k):
    """[(leader, score)] best first, and the probabilities of all leaders."""
    probabilities = softmax(weight_LE @ condition_E + bias_L)
    best = sorted(range(len(probabilities)), key=lambda leader: -probabilities[leader])[:top_k]
    total = sum(probabilities[leader] for leader in best)
    return [(leader, probabilities[leader] / total) for leader in best], probabilities


def leader_kernel(logits_NE, bases_NEEkk):
    """One leader: for each output channel its own mixture of the bank's base kernels."""
    kernel = np.zeros(bases_NEEkk.shape[1:])
    for channel in range(bases_NEEkk.shape[1]):
        shares = softmax(logits_NE[:, channel])
        for share, base in zip(shares, bases_NEEkk, strict=True):
            kernel[channel] += share * base[channel]
    return kernel


def routed_output(x_EHW, chosen, logits_LNE, bases_GNEEkk):
    """K convolutions, one for each leader, weighed by their scores."""
    leaders_per_bank = len(logits_LNE) // len(bases_GNEEkk)
    y = np.zeros_like(x_EHW)
    for leader, score in chosen:
        y += score * convolve(x_EHW, leader_kernel(logits_LNE[leader], bases_GNEEkk[leader // leaders_per_bank]))
    return y


def branch_output(branch, key_EHW, condition_E):
    """A MiMoE branch for one token."""
    x_EHW = pointwise(key_EHW, branch.pre)
    gate, leaders = branch.routed.gate, branch.routed.leaders
    chosen, _ = route(condition_E, array(gate.linear.weight), array(gate.linear.bias), gate.top_k)
    routed = routed_output(x_EHW, chosen, array(leaders.logits_LNE), array(branch.bank.kernels_GNEEkk))
    fixed = convolve(x_EHW, array(branch.fixed_EEkk))
    return relu(group_norm(convolve(np.concatenate([fixed, routed]), array(branch.post.weight)), branch.norm))


def conditions(module, keys_TEHW, queries_TEHW):
    """The cross condition of every token: [T, E]. BatchNorm looks at all tokens at once."""
    joined = [np.concatenate([key, query]) for key, query in zip(keys_TEHW, queries_TEHW, strict=True)]
    x = np.stack([convolve(token, array(module.join.weight)) for token in joined])
    x = gelu(batch_norm(x, module.batch_norm))
    return [pointwise(relu(group_norm(token, module.group_norm)), module.mix).mean(axis=(1, 2)) for token in x]


def cross_moe(level, shared_BCHW, teacher_TCHW, tokens_per_sample):
    """A whole level, token by token: reconstructions [T, C, H, W]."""
    shared = [sample for sample, count in zip(shared_BCHW, tokens_per_sample, strict=True) for _ in range(count)]
    keys = [pointwise(x, level.key) for x in shared]
    queries = [pointwise(x, level.query) for x in teacher_TCHW]
    outputs = []
    for key, condition in zip(keys, conditions(level.condition, keys, queries), strict=True):
        branches = [branch_output(branch, key, condition) for branch in level.branches]
        outputs.append(pointwise(np.concatenate(branches), level.out))
    return np.stack(outputs)
