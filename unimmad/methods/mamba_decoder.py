"""MambaAD's decoder: a feature pyramid rebuilt from its narrowest map, by selective scans over the map in 8 directions
and by depthwise convolutions beside them.

Letters: B images, H x W positions (square), L = H * W positions in a row, C channels, D = 2 C inner channels, K = 8
directions, N states of a channel, P = r + 2 N values that a token's step of rank r, its B and its C are made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.methods.scan_orders import DIRECTIONS, ScanType, direction_orders
from unimmad.methods.selective_scan import selective_scan
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports

ensure_torchvision_imports()
from timm.layers import DropPath  # noqa: E402

STATES = 16
EXPANSION = 2
CHANNELS_PER_STEP_RANK = 16
FIRST_STEPS = (1e-3, 1e-1)
"""Step sizes of a new network."""
LINEAR_STD = 0.02


class MambaDecoder(nn.Module):
    """A map at the coarsest grid -> maps at the three finer ones, each twice as fine with half the channels."""

    def __init__(
        self, channels: int, depths: Sequence[int], coarsest_grid: int, scan_type: ScanType, drop_path: float
    ) -> None:
        """Build with random weights.

        Args:
            channels: of the coarsest map; halved from stage to stage.
            depths: scan blocks of each stage, a multiple of 2 or 3.
            coarsest_grid: height and width of the coarsest map.
            scan_type: in which order a map's positions are scanned.
            drop_path: the largest share of samples that a scan block is skipped for in training.
        """
        super().__init__()
        rates = np.linspace(drop_path, 0, sum(depths)).tolist()
        stages = []
        for stage, depth in enumerate(depths):
            orders_KL = direction_orders(scan_type, coarsest_grid * 2**stage)
            of_stage = rates[sum(depths[:stage]) :]
            stages.append(_stage(channels // 2**stage, depth, orders_KL, of_stage, expands=stage > 0))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise_linear)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """The maps behind every stage but the first, finest first, [B, C, H, W]."""
        x_BHWC, maps = x_BCHW.permute(0, 2, 3, 1), []
        for stage in self.stages:
            x_BHWC = stage(x_BHWC)
            maps.append(x_BHWC.permute(0, 3, 1, 2))
        return maps[:0:-1]


def scans_of_a_block(depth: int) -> int:
    """How many scan blocks of a stage stand in one block beside the same convolutions.

    Raises:
        ValueError: a depth that is not a multiple of 2 or 3.
    """
    for scans in (3, 2):
        if depth % scans == 0:
            return scans
    raise ValueError(f"a stage's depth must be a multiple of 2 or 3, not {depth}")


def _stage(channels: int, depth: int, orders_KL: Tensor, rates: Sequence[float], expands: bool) -> nn.Sequential:
    scans = scans_of_a_block(depth)
    blocks: list[nn.Module] = [PatchExpanding(channels)] if expands else []
    blocks += [LocalAndScanned(channels, scans, orders_KL, rates[block]) for block in range(depth // scans)]
    return nn.Sequential(*blocks)


class PatchExpanding(nn.Module):
    """[B, H, W, 2 C] -> [B, 2 H, 2 W, C]: every position becomes four."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2 * channels, 4 * channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        quarters = self.expand(x_BHWC).unflatten(3, (2, 2, -1))
        return self.norm(quarters.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3))


class LocalAndScanned(nn.Module):
    """Scan blocks one behind the other, two branches of convolutions beside them, the three joined: [B, H, W, C]."""

    def __init__(self, channels: int, scans: int, orders_KL: Tensor, drop_path: float) -> None:
        super().__init__()
        self.scans = nn.Sequential(*[ScanBlock(channels, orders_KL, drop_path) for _ in range(scans)])
        self.branches = nn.ModuleList([_branch(channels, kernel_size) for kernel_size in (5, 7)])
        self.join = nn.Conv2d(3 * channels, channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise_convolution(module)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        scanned_BCHW = self.scans(x_BHWC).permute(0, 3, 1, 2)
        joined_BCHW = self.join(torch.cat([scanned_BCHW, *[branch(x_BCHW) for branch in self.branches]], dim=1))
        return x_BHWC + joined_BCHW.permute(0, 2, 3, 1)


def _branch(channels: int, kernel_size: int) -> nn.Sequential:
    depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)
    convolutions = [nn.Conv2d(channels, channels, 1), depthwise, nn.Conv2d(channels, channels, 1)]
    return nn.Sequential(*[layer for conv in convolutions for layer in (conv, nn.InstanceNorm2d(channels), nn.SiLU())])


class ScanBlock(nn.Module):
    """x + scan(LayerNorm x), [B, H, W, C]; in training skipped for some samples."""

    def __init__(self, channels: int, orders_KL: Tensor, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.scan = DirectionalScan(channels, orders_KL)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC + self.drop_path(self.scan(self.norm(x_BHWC)))


class DirectionalScan(nn.Module):
    """Selective scans of a map in 8 directions, summed and gated: [B, H, W, C]."""

    visits_KL: Tensor
    returns_KL: Tensor

    def __init__(self, channels: int, orders_KL: Tensor) -> None:
        super().__init__()
        inner, self.step_rank = EXPANSION * channels, math.ceil(channels / CHANNELS_PER_STEP_RANK)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.token_weight_KPD = nn.Parameter(torch.empty(DIRECTIONS, self.step_rank + 2 * STATES, inner))
        self.step_weight_KDr = nn.Parameter(torch.empty(DIRECTIONS, inner, self.step_rank))
        self.step_bias_KD = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.log_rate_KDN = nn.Parameter(torch.empty(DIRECTIONS, inner, STATES))
        self.skip_KD = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.register_buffer("visits_KL", orders_KL, persistent=False)
        self.register_buffer("returns_KL", orders_KL.argsort(1), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        inner = self.token_weight_KPD.shape[2]
        nn.init.uniform_(self.token_weight_KPD, -(inner**-0.5), inner**-0.5)  # that of a linear layer in torch
        nn.init.uniform_(self.step_weight_KDr, -(self.step_rank**-0.5), self.step_rank**-0.5)
        smallest, largest = (math.log(step) for step in FIRST_STEPS)
        with torch.no_grad():
            steps = torch.empty_like(self.step_bias_KD).uniform_(smallest, largest).exp()
            self.step_bias_KD.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus gives the steps back
            self.log_rate_KDN.copy_(torch.arange(1.0, STATES + 1).log())
        nn.init.ones_(self.skip_KD)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWD, gate_BHWD = self.in_proj(x_BHWC).chunk(2, dim=3)
        x_BDHW = F.silu(self.conv(x_BHWD.permute(0, 3, 1, 2)))
        y_LBD = self._scan(_in_full_precision(x_BDHW).flatten(2).permute(2, 0, 1))
        y_BHWD = self.out_norm(y_LBD.transpose(0, 1).unflatten(1, x_BHWC.shape[1:3]))
        return self.out_proj(y_BHWD * F.silu(gate_BHWD))

    def _scan(self, x_LBD: Tensor) -> Tensor:
        """The sum of all directions' scans, in the positions' own order, in float32 whatever autocast says."""
        batch, inner = x_LBD.shape[1:]
        with torch.autocast(x_LBD.device.type, enabled=False):
            # A token's values do not depend on where it stands, so they are computed once and then put in order.
            tokens_LBKP = F.linear(x_LBD, self.token_weight_KPD.flatten(0, 1)).unflatten(2, (DIRECTIONS, -1))
            tokens_LKBP = torch.stack(_take(tokens_LBKP.unbind(2), self.visits_KL), dim=1)
            steps_LKBr, B_LKBN, C_LKBN = tokens_LKBP.split([self.step_rank, STATES, STATES], dim=3)
            steps_LKBD = torch.einsum("lkbr,kdr->lkbd", steps_LKBr, self.step_weight_KDr)
            delta_LKBD = F.softplus(steps_LKBD + self.step_bias_KD[:, None])
            u_LKBD = torch.stack(_take([x_LBD] * DIRECTIONS, self.visits_KL), dim=1)
            A_KBND = -self.log_rate_KDN.exp().transpose(1, 2)[:, None].expand(-1, batch, -1, -1)
            u_LRD, delta_LRD, B_LRN, C_LRN = (value.flatten(1, 2) for value in (u_LKBD, delta_LKBD, B_LKBN, C_LKBN))
            y_LRD = selective_scan(u_LRD, delta_LRD, A_KBND.flatten(0, 1), B_LRN, C_LRN)
            y_LKBD = y_LRD.view(-1, DIRECTIONS, batch, inner) + self.skip_KD[:, None] * u_LKBD
            return torch.stack(_take(y_LKBD.unbind(1), self.returns_KL)).sum(0)


def _take(values: Sequence[Tensor], positions_KL: Tensor) -> list[Tensor]:
    """One [L, B, E] a direction, each with its positions in that direction's order."""
    return [value.index_select(0, order) for value, order in zip(values, positions_KL.unbind(), strict=True)]


def _in_full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=LINEAR_STD)


def _initialise_convolution(convolution: nn.Conv2d) -> None:
    fan_out = math.prod(convolution.kernel_size) * convolution.out_channels // convolution.groups
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / fan_out))
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
