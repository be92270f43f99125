"""BatchNorm whose statistics are the global batch's, so that results don't depend on how many ranks share it.

Torch's SyncBatchNorm makes the host wait for the device in every forward pass; nothing here does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unimmad.parallel.collectives import gather_rows


class _NormaliseOverRanks(torch.autograd.Function):
    """BatchNorm of all ranks' maps together; gives the statistics, too, which carry no gradient.

    Every rank's loss depends on every rank's map, so the gradients of the statistics are summed over ranks.
    """

    @staticmethod
    def forward(
        context: Any, input_NCHW: Tensor, weight_C: Tensor, bias_C: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_NCHW = input_NCHW.float()
        positions = x_NCHW.numel() // x_NCHW.shape[1]
        centre_C = x_NCHW.sum(dim=(0, 2, 3)) / max(positions, 1)
        centred_NCHW = x_NCHW - centre_C[:, None, None]
        count, exact_mean_C, variance_C = _over_ranks(positions, centre_C, centred_NCHW)
        mean_C, inverse_C = exact_mean_C.float(), torch.rsqrt(variance_C + epsilon)
        context.save_for_backward(input_NCHW, weight_C, mean_C, inverse_C, count)
        context.mark_non_differentiable(mean_C, variance_C, count)
        scale_C = weight_C * inverse_C
        shift_C = bias_C + (centre_C - exact_mean_C).float() * scale_C
        output_NCHW = centred_NCHW.mul_(scale_C[:, None, None]).add_(shift_C[:, None, None])
        return output_NCHW.to(input_NCHW.dtype), mean_C, variance_C, count

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        input_NCHW, weight_C, mean_C, inverse_C, count = context.saved_tensors
        dy_NCHW = gradients[0].float()
        centred_NCHW = input_NCHW.float() - mean_C[:, None, None]
        dbias_C = dy_NCHW.sum(dim=(0, 2, 3))
        along_C = (dy_NCHW * centred_NCHW).sum(dim=(0, 2, 3))
        of_all_ranks = torch.stack([dbias_C, along_C])
        dist.all_reduce(of_all_ranks)
        mean_dy_C, mean_along_C = of_all_ranks / count
        dx_NCHW = centred_NCHW.mul_((-inverse_C.square() * mean_along_C)[:, None, None])
        dx_NCHW += dy_NCHW
        dx_NCHW -= mean_dy_C[:, None, None]
        dx_NCHW *= (weight_C * inverse_C)[:, None, None]
        return dx_NCHW.to(input_NCHW.dtype), along_C * inverse_C, dbias_C, None


def _over_ranks(positions: int, centre_C: Tensor, centred_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean (in float64) and biased variance of all ranks' positions, from each rank's own; some may have none.

    The sums of squares are joined by Chan's formula. It squares differences of the ranks' means, so a mean that is
    rounded to float32 would cost digits where it is large: what rounding left out of ``centre_C`` goes with it.
    """
    rest_C = centred_NCHW.sum(dim=(0, 2, 3)) / max(positions, 1)
    squares_C = centred_NCHW.square().sum(dim=(0, 2, 3))
    own = torch.cat([centre_C, rest_C, squares_C, squares_C.new_full((1,), positions)])
    of_ranks = gather_rows(own).double()
    centre_RC, rest_RC, squares_RC = of_ranks[:, :-1].chunk(3, dim=1)
    count_R1 = of_ranks[:, -1:]
    count = count_R1.sum()
    mean_RC = centre_RC + rest_RC
    mean_C = (count_R1 * mean_RC).sum(dim=0) / count
    squares_C = (squares_RC + count_R1 * ((mean_RC - mean_C).square() - rest_RC.square())).sum(dim=0)
    return count.float(), mean_C, (squares_C / count).clamp_(min=0).float()


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """As ``nn.BatchNorm2d``; in training, mean and variance are taken over all ranks, which may hold unequal shares.

    Raises:
        ValueError: torch.distributed was not started.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output_NCHW, mean_C, variance_C, count = _NormaliseOverRanks.apply(input, self.weight, self.bias, self.eps)
        self._track(mean_C, variance_C * count / (count - 1))
        return output_NCHW

    @torch.no_grad()
    def _track(self, mean_C: Tensor, unbiased_variance_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(unbiased_variance_C, self.momentum)
        self.num_batches_tracked.add_(1)


def check_batchnorm(model: nn.Module) -> None:
    """
    Raises:
        ValueError: a trained BatchNorm of a kind that ``synchronise_batchnorm`` can't take (some backbones join it with
            its activation).
    """
    for module in model.modules():
        if _is_trained(module) and type(module) is not nn.BatchNorm2d:
            raise ValueError(
                f"the backbone's {type(module).__name__} can't take its statistics over several ranks; "
                "use --set model.encoder_batchnorm=frozen, or one rank"
            )


def synchronise_batchnorm(model: nn.Module) -> nn.Module:
    """Give every trained BatchNorm2d of ``model`` statistics over all ranks; frozen ones stay.

    Raises:
        ValueError: as ``check_batchnorm``.
    """
    check_batchnorm(model)
    for name, child in model.named_children():
        if _is_trained(child):
            assert isinstance(child, nn.BatchNorm2d)
            twin = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
            twin.load_state_dict(child.state_dict())
            setattr(model, name, twin.to(child.weight.device))
        else:
            synchronise_batchnorm(child)
    return model


def _is_trained(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad
