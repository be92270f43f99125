"""BatchNorm whose statistics are the global batch's, so that results don't depend on how many ranks share it.

Torch's SyncBatchNorm does it on GPUs; the one here does it on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimmad.parallel.collectives import sum_over_ranks


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """As ``nn.BatchNorm2d``; in training, mean and variance are taken over all ranks, which may hold unequal shares."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x_NCHW = input.float()
        count = sum_over_ranks(x_NCHW.new_tensor(float(x_NCHW.numel() // x_NCHW.shape[1])))
        mean_C = sum_over_ranks(x_NCHW.sum(dim=(0, 2, 3))) / count
        centred_NCHW = x_NCHW - mean_C[:, None, None]
        variance_C = sum_over_ranks(centred_NCHW.square().sum(dim=(0, 2, 3))) / count
        self._track(mean_C.detach(), variance_C.detach() * count / (count - 1))
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        return (centred_NCHW * scale_C[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean_C: Tensor, unbiased_variance_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(unbiased_variance_C, self.momentum)
        self.num_batches_tracked.add_(1)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Give every trained BatchNorm2d of ``model`` statistics over all ranks; frozen ones stay.

    Raises:
        ValueError: a BatchNorm of a kind that can't be given them (some backbones join it with its activation).
    """
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d) and child.weight.requires_grad:
            if type(child) is not nn.BatchNorm2d:
                raise ValueError(
                    f"the backbone's {type(child).__name__} can't take its statistics over several ranks; "
                    "use --set model.encoder_batchnorm=frozen, or one rank"
                )
            setattr(model, name, _synchronised(child, device))
        else:
            synchronise_batchnorm(child, device)
    return model


def _synchronised(batchnorm: nn.BatchNorm2d, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(batchnorm)
    twin = GlobalBatchNorm2d(batchnorm.num_features, batchnorm.eps, batchnorm.momentum)
    twin.load_state_dict(batchnorm.state_dict())
    return twin
