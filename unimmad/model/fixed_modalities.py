"""The network for a fixed set of modalities: the same numbers from plain tensor operations that can be exported.

Every sample has the same M modalities, so the batch may be of any size without a list of counts on the host, and a
token's own kernel acts by matrix products over shifted maps, where a loop over samples could not be traced.

Letters: B samples, M modalities of each, T = B M tokens, E embed channels (in and out), k x k kernel,
h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.anomaly_map import cosine_distance
from unimmad.model.cross_moe import CrossMoE, MiMoEBranch
from unimmad.model.method import check_slots
from unimmad.model.unimmad import UniMMAD


class FixedModalities(nn.Module):
    """Anomaly maps of samples that all have the modalities of ``slots``; shares its parameters with ``model``.

    ``model``'s own branches are put into the form for fixed modalities, so it must not be used by itself afterwards.
    """

    def __init__(self, model: UniMMAD, slots: Sequence[int]) -> None:
        """
        Raises:
            ValueError: a slot that the model does not have, or one twice.
        """
        super().__init__()
        check_slots(slots, model.modality_slots)
        self.model = model.eval()
        self.slots = tuple(slots)
        for level in model.levels:
            assert isinstance(level, CrossMoE)
            for branch in level.branches:
                assert isinstance(branch, MiMoEBranch)
                branch.convolve = partial(_convolve_by_products, modalities=len(slots))

    def forward(self, images_BMCHW: Tensor) -> Tensor:
        """Normalised images, modalities in the order of ``slots`` -> maps before blurring, float32 [B, H, W]."""
        model, modalities = self.model, len(self.slots)
        images_TCHW = images_BMCHW.flatten(0, 1)
        batch = images_BMCHW.shape[0]
        # Not repeat_interleave, whose result has a size that a tracer does not know.
        sample_of_token_T = torch.arange(batch, device=images_BMCHW.device)[:, None].expand(-1, modalities).flatten()
        teacher_maps = model.teacher(images_TCHW)
        shared_maps = model.compression(model.encoder(model.input_embedding.embed(self._placed(images_BMCHW))))
        distances = []
        for level, shared_BChw, teacher_TChw in zip(model.levels, shared_maps, teacher_maps, strict=True):
            target_TChw = F.normalize(teacher_TChw, dim=1)
            reconstruction_TChw, _ = level(F.normalize(shared_BChw, dim=1), target_TChw, (), sample_of_token_T)
            distances.append(cosine_distance(target_TChw, reconstruction_TChw).unflatten(0, (-1, modalities)))
        return self.joined(distances, [level_TChw.unflatten(0, (-1, modalities)) for level_TChw in teacher_maps])

    def joined(self, distances: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, H, W] of each level's distances [B, M, h, w] and the teacher's maps [B, M, C_l, h, w]."""
        size = self.model.settings.image_size
        squares_BHW = distances[0].new_zeros(distances[0].shape[0], size, size)  # len() would fix the batch
        for distance_BMhw in distances:
            upsampled_BMHW = F.interpolate(distance_BMhw, size=(size, size), mode="bilinear", align_corners=True)
            squares_BHW = squares_BHW + upsampled_BMHW.square().sum(dim=1)
        return squares_BHW.sqrt()

    def _placed(self, images_BMCHW: Tensor) -> Tensor:
        """[B, S, 3, H, W] for all slots of the model; zeros in those that are not used."""
        nothing_BCHW = torch.zeros_like(images_BMCHW[:, 0])
        placed = [
            images_BMCHW[:, self.slots.index(slot)] if slot in self.slots else nothing_BCHW
            for slot in range(self.model.settings.modality_slots)
        ]
        return torch.stack(placed, dim=1)


def _convolve_by_products(
    x_BEhw: Tensor, kernels_TEEkk: Tensor, tokens_per_sample: Sequence[int], modalities: int
) -> Tensor:
    return convolve_by_products(x_BEhw, kernels_TEEkk, modalities)


def convolve_by_products(x_BEhw: Tensor, kernels_TEEkk: Tensor, modalities: int) -> Tensor:
    """``leaders.convolve_tokens`` where every sample has ``modalities`` tokens: [T, E, h, w].

    A batched matrix product for each row of the kernels, over the map's column shifts side by side: with all shifts at
    once a map would take k x k times its memory, and one product a shift makes graphs of thousands of nodes.
    """
    _, out_channels, in_channels, size, _ = kernels_TEEkk.shape
    height, width = x_BEhw.shape[2:]
    padded_BEhw = F.pad(x_BEhw, (size // 2,) * 4)
    shifted_BIhw = torch.cat([padded_BEhw[..., column : column + width] for column in range(size)], dim=1)
    # I = k E, column by column as above; F = M E, the outputs of a sample's tokens.
    kernels_kTEI = kernels_TEEkk.permute(3, 0, 1, 4, 2).flatten(3)
    kernels_kBFI = kernels_kTEI.reshape(size, -1, modalities * out_channels, size * in_channels)
    output_BFp = torch.bmm(kernels_kBFI[0], shifted_BIhw[:, :, :height].flatten(2))
    for row in range(1, size):
        output_BFp = output_BFp + torch.bmm(kernels_kBFI[row], shifted_BIhw[:, :, row : row + height].flatten(2))
    return output_BFp.reshape(-1, out_channels, height, width)
