"""PatchCore (Roth et al., CVPR 2022) and plain nearest-neighbour search: patches of normal images are kept.

A patch of a test image is as anomalous as it is far from the nearest patches that are kept. Nothing is trained. Every
modality has a bank of its own, shared by all classes or one for each. An image's score is made of its map, as that of
every other method; PatchCore's weight by the neighbourhood (its equation 7), which its authors' code has not, is not
here.

Letters: B samples, T tokens (sample, modality), N patches of a bank, D features of a patch, h x w positions of the
finest layer, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import Integer, NotNegative, Positive
from unimmad.config.method import BackboneKind, MethodSettings, PositionResampling, TimmName
from unimmad.methods.banks import Banks, BankSettings, of_nearer_bank
from unimmad.methods.frozen_teacher import FrozenTeacher
from unimmad.methods.patch_features import joined_patches, patchcore_patches
from unimmad.model.anomaly_map import parts_of_squares
from unimmad.model.backbone import Backbone
from unimmad.model.backends.convolution import use_fast_convolutions
from unimmad.model.folding import fold_batchnorm
from unimmad.model.method import ROOT_OF_SQUARES, FittedMethod, check_slots, sample_of_token
from unimmad.model.vit import FrozenViT

JOINS = {"rss": ROOT_OF_SQUARES, "sum": "sum", "max": "maximum"}
"""In words."""

Dimensions = Annotated[Integer, Field(gt=0, le=65536)]


class MemoryBankSettings(BankSettings, MethodSettings):
    """PatchCore's published ones by default."""

    backbone: TimmName = "wide_resnet50_2.tv_in1k"
    strides: tuple[Positive, ...] = (8, 16)
    """Of the layers whose features are used, ascending; each passes a ReLU."""
    blocks: tuple[NotNegative, ...] = ()
    """With a vision transformer: the blocks whose tokens are used in place of ``strides``, ascending from 0."""
    position_resampling: PositionResampling = "timm"
    """How a vision transformer's position embeddings are brought to the image's grid: as ``timm`` does, or ``dinov2``
    as that backbone's authors do."""
    features: Literal["patchcore", "joined"] = "patchcore"
    """What a patch is described by. ``patchcore``: all values of its 3 x 3 windows, averaged to ``layer_dim`` a layer
    and to ``patch_dim`` in all. ``joined``: the means of its windows in all layers, each divided by its standard
    deviation over the patches that the bank is chosen from."""
    layer_dim: Dimensions = 1024
    """Features of a layer (``patchcore``)."""
    patch_dim: Dimensions = 1024
    """Features of a patch (``patchcore``)."""
    align_corners: bool = False
    """How coarser layers come bilinearly to the finest one's grid, and patch scores to the image size, as
    ``torch.nn.functional.interpolate`` calls it."""
    join: Literal["rss", "sum", "max"] = "rss"
    """How the maps of a sample's modalities become one: root of the sum of squares, sum, or maximum."""

    @property
    def backbone_kind(self) -> BackboneKind:
        return "transformer" if self.blocks else "convolutional"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.strides or any(sorted(set(used)) != [*used] for used in (self.strides, self.blocks)):
            raise ValueError(
                f"strides {list(self.strides)} and blocks {list(self.blocks)} must ascend; one or more strides"
            )
        return self


@dataclass(frozen=True)
class PatchScores:
    """What a forward pass gives."""

    scores_Thw: Tensor
    """float32."""
    sample_of_token_T: Tensor
    batch: int


class MemoryBank(FrozenTeacher, Banks, FittedMethod):
    """Banks of the patches of a frozen teacher."""

    settings: MemoryBankSettings
    teacher: Backbone | FrozenViT

    def __init__(self, settings: MemoryBankSettings) -> None:
        teacher: Backbone | FrozenViT
        if settings.blocks:
            teacher = FrozenViT(settings.backbone, settings.blocks, settings.image_size, settings.position_resampling)
            channels = teacher.dim * len(settings.blocks)
        else:
            teacher = Backbone(settings.backbone, settings.strides, without_rest=True)
            channels = sum(teacher.channels)
        joined = settings.features == "joined"
        features = channels if joined else settings.patch_dim
        super().__init__(settings, features, settings.modality_slots, "deviation" if joined else "none")
        self.settings = settings
        self.modalities_joined = JOINS[settings.join]
        self.looks_at_class = settings.bank_per == "class"
        self.teacher = teacher.eval().requires_grad_(False)

    def inference_form(self, cache_bytes: int) -> Self:
        """BatchNorm is folded into the convolutions, of which those of large maps need fewer multiplications."""
        if isinstance(self.teacher, Backbone):
            fold_batchnorm(self.teacher)
            use_fast_convolutions(self.teacher)
        return self.eval()

    @torch.no_grad()
    def describe_patches(self, images_TCHW: Tensor) -> Tensor:
        """The features of every patch: float32 [T, h, w, D]."""
        with torch.autocast(images_TCHW.device.type, enabled=False):
            return self.patch_features(images_TCHW.float())

    def patch_features(self, images_TCHW: Tensor) -> Tensor:
        maps = self._maps(images_TCHW)
        if self.settings.features == "joined":
            return joined_patches(maps, self.settings.align_corners)
        settings = self.settings
        return patchcore_patches(maps, settings.layer_dim, settings.patch_dim, settings.align_corners)

    def _maps(self, images_TCHW: Tensor) -> Sequence[Tensor]:
        """The teacher's, [T, C, h, w] each, the finest first."""
        if isinstance(self.teacher, FrozenViT):
            return [self.teacher.as_map(tokens.patches_NPD) for tokens in self.teacher(images_TCHW)]
        maps: list[Tensor] = self.teacher(images_TCHW)
        return maps

    def collect(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
        views: Sequence[int] | None = None,
    ) -> None:
        self._check_length("classes", classes, len(tokens_per_sample))
        self._check_length("keys", keys, len(tokens_per_sample))
        samples = sample_of_token(tokens_per_sample, torch.device("cpu")).tolist()
        slots = slot_of_token_T.tolist()
        names = [self.bank_name(classes[sample], slot) for sample, slot in zip(samples, slots, strict=True)]
        views_T = None if views is None else [views[sample] for sample in samples]
        patches_TPD = self.describe_patches(images_TCHW).flatten(1, 2)
        self.add(names, [keys[sample] for sample in samples], patches_TPD, views_T)

    @torch.no_grad()
    def forward(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None = None,
    ) -> PatchScores:
        """Scores of all patches.

        Raises:
            ValueError: there is no bank for a sample's class or for a slot.
        """
        samples_T = sample_of_token(tokens_per_sample, torch.device("cpu"))
        if classes is not None:
            self._check_length("classes", classes, len(tokens_per_sample))
        tokens_of: dict[int, list[int]] = {}
        for token, (sample, slot) in enumerate(zip(samples_T.tolist(), slot_of_token_T.tolist(), strict=True)):
            for number in self.banks_to_search(None if classes is None else classes[sample], slot):
                tokens_of.setdefault(number, []).append(token)
        patches_ThwD = self.describe_patches(images_TCHW)
        best_Thw = torch.full_like(patches_ThwD[..., 0], torch.inf)
        for number, tokens in tokens_of.items():
            chosen = torch.tensor(tokens, device=best_Thw.device)
            best_Thw[chosen] = of_nearer_bank(best_Thw[chosen], self.scores(patches_ThwD[chosen], number))
        return PatchScores(best_Thw, samples_T.to(best_Thw.device), len(tokens_per_sample))

    def maps(self, output: PatchScores) -> Tensor:
        maps_THW = self.at_image_size(output.scores_Thw)
        nothing_BHW = maps_THW.new_zeros(output.batch, *maps_THW.shape[1:])
        if self.settings.join == "max":  # scores are 0 or more
            places_THW = output.sample_of_token_T[:, None, None].expand_as(maps_THW)
            return nothing_BHW.scatter_reduce(0, places_THW, maps_THW, "amax")
        if self.settings.join == "sum":
            return nothing_BHW.index_add(0, output.sample_of_token_T, maps_THW)
        return nothing_BHW.index_add(0, output.sample_of_token_T, maps_THW.square()).sqrt()

    def parts(self, output: PatchScores) -> Tensor:
        """Of the maximum all is the largest one's; of several as large, the first one's."""
        maps_THW, samples_T = self.at_image_size(output.scores_Thw), output.sample_of_token_T
        if self.settings.join == "sum":
            return maps_THW
        if self.settings.join == "rss":
            return parts_of_squares(maps_THW.square(), samples_T, output.batch)
        largest_THW = self.maps(output)[samples_T]
        taken_BHW = torch.zeros_like(largest_THW[:1], dtype=torch.bool).repeat(output.batch, 1, 1)
        parts = []
        for map_HW, largest_HW, sample in zip(maps_THW, largest_THW, samples_T.tolist(), strict=True):
            is_largest_HW = (map_HW == largest_HW) & ~taken_BHW[sample]
            taken_BHW[sample] |= is_largest_HW
            parts.append(torch.where(is_largest_HW, map_HW, 0))
        return torch.stack(parts)

    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        """As ``Method``'s; the class of a sample is not known to it."""
        check_slots(slots, self.modality_slots)
        return _FixedModalities(self, slots)

    def at_image_size(self, scores_Thw: Tensor) -> Tensor:
        """[T, H, W]."""
        size, align_corners = (self.image_size, self.image_size), self.settings.align_corners
        return F.interpolate(scores_Thw[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]

    @staticmethod
    def _check_length(what: str, given: Sequence[object], batch: int) -> None:
        if len(given) != batch:
            raise ValueError(f"{len(given)} {what} were given for {batch} samples")


class _FixedModalities(nn.Module):
    """Every sample has the modalities of ``slots`` and is of any class; plain operations that can be traced."""

    def __init__(self, method: MemoryBank, slots: Sequence[int]) -> None:
        super().__init__()
        self.method = method.eval()
        self.banks_of_M = [method.banks_to_search(None, slot) for slot in slots]

    def forward(self, images_BMCHW: Tensor) -> Tensor:
        """Normalised images -> maps before blurring, float32 [B, H, W]."""
        patches_ThwD = self.method.patch_features(images_BMCHW.flatten(0, 1))
        patches_BMhwD = patches_ThwD.unflatten(0, images_BMCHW.shape[:2])
        of_modalities = zip(patches_BMhwD.unbind(1), self.banks_of_M, strict=True)
        maps_MBHW = torch.stack([self.method.at_image_size(self._modality(*pair)) for pair in of_modalities])
        if self.method.settings.join == "max":
            return maps_MBHW.amax(0)
        return maps_MBHW.sum(0) if self.method.settings.join == "sum" else maps_MBHW.square().sum(0).sqrt()

    def _modality(self, patches_BhwD: Tensor, numbers: Sequence[int]) -> Tensor:
        """Scores of one modality's patches: [B, h, w]."""
        return reduce(of_nearer_bank, (self.method.traced_scores(patches_BhwD, number) for number in numbers))
