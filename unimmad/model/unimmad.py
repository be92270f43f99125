"""The whole network (METHOD): teacher, input embedding (part 2), encoder, compression, and a C-MoE decoder a level.

Plain torch: it knows neither training nor where experts live.

Letters: B samples, T tokens (sample, modality), S slots, C_l channels of level l, H x W pixels, h x w positions of a
level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.anomaly_map import anomaly_maps, cosine_distance, parts_of_squares, token_squares
from unimmad.model.backbone import calibrate_batchnorm, freeze_batchnorm, load_backbone_weights
from unimmad.model.compression import FeatureCompression
from unimmad.model.cross_moe import CrossMoE
from unimmad.model.folding import FoldedTeacher, rest_on_host
from unimmad.model.level_networks import new_level_network
from unimmad.model.loss import balance_scale, unimmad_loss
from unimmad.model.method import Loss, Method, OwnLevels, StepFacts, sample_of_token
from unimmad.model.routing import Routing

if TYPE_CHECKING:
    from unimmad.config import ModelSettings


class InputEmbedding(nn.Module):
    """Places each image in its slot's channels, adds a learned map, and squeezes the 3 S channels to 3."""

    def __init__(self, slots: int, image_size: int) -> None:
        super().__init__()
        self.slots = slots
        channels = 3 * slots
        self.embedding_CHW = nn.Parameter(torch.randn(channels, image_size, image_size) * 0.02)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(inplace=True),
            nn.Conv2d(48, 3, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(channels, 3, 1)

    @torch.no_grad()
    def begin_as_sum(self) -> None:
        """Become the sum of a sample's images, whatever their slots."""
        first, last = self.shortcut, self.stem[-1]
        for parameter in (self.embedding_CHW, *first.parameters(), *last.parameters()):
            parameter.zero_()
        channels = torch.arange(3 * self.slots)
        first.weight[channels % 3, channels] = 1.0

    def forward(self, images_TCHW: Tensor, sample_of_token_T: Tensor, slot_of_token_T: Tensor, batch: int) -> Tensor:
        """[T, 3, H, W] -> [B, 3, H, W]; a missing modality leaves zeros in its slot."""
        placed_BSCHW = images_TCHW.new_zeros(batch, self.slots, *images_TCHW.shape[1:])
        placed_BSCHW = placed_BSCHW.index_put((sample_of_token_T, slot_of_token_T), images_TCHW)
        return self.embed(placed_BSCHW)

    def embed(self, placed_BSCHW: Tensor) -> Tensor:
        """[B, S, 3, H, W], each image in its slot and zeros in the others -> [B, 3, H, W]."""
        x_BCHW = placed_BSCHW.flatten(1, 2) + self.embedding_CHW
        return self.stem(x_BCHW) + self.shortcut(x_BCHW)


@dataclass(frozen=True)
class Reconstruction:
    """What a forward pass gives: how far every token is from its reconstruction, and how it was routed."""

    distances: tuple[Tensor, ...]
    """Distances of each level, finest first, float32 [T, h, w]: 1 - cosine(teacher, reconstruction)."""
    routings: tuple[tuple[Routing, ...], ...]
    """How tokens were routed, by level, then branch."""
    sample_of_token_T: Tensor
    """Position in the batch of each token's sample: int64 [T]."""
    batch: int
    """Number of samples."""
    teacher_maps: tuple[Tensor, ...] = ()
    """The teacher's features of each level, finest first, [T, C_l, h, w]; for whom ``keeps_teacher_maps`` is set."""
    before: Before | None = None
    """What was said before, in training that distils."""


@dataclass(frozen=True)
class Before:
    """What the levels said before they learnt on, of the same tokens."""

    distances: tuple[Tensor, ...]
    """Of each level, finest first, between reconstructions then and now: float32 [T, h, w]."""
    routings: tuple[tuple[Routing, ...], ...]
    """By level, then branch."""
    leaders: tuple[int, ...]
    """Where those leaders are among the ones there are now."""


ForwardPass = Callable[[Tensor, Sequence[int], Tensor], Reconstruction]
"""As ``UniMMAD.forward``."""


def whole_batch(
    compute: ForwardPass, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor
) -> Reconstruction:
    """The whole batch in one pass."""
    return compute(images_TCHW, tokens_per_sample, slot_of_token_T)


class UniMMAD(Method):
    """One model for all classes and modalities."""

    sees_drawn = True

    keeps_teacher_maps = False
    """Whether a forward pass in scoring gives the teacher's maps, too."""
    experts_alone = False
    """Whether gates and leaders alone are trained: see ``unimmad.model.growing``."""
    before: Sequence[CrossMoE] = ()
    """Of training that distils: the levels as they were before it, which see what these see."""
    old_leaders: tuple[int, ...] = ()
    """Where the leaders of ``before`` are among these."""
    distillation = 0.0
    """Weight of staying with ``before`` in the loss."""

    def __init__(self, settings: ModelSettings) -> None:
        """The model with random weights, to be filled from a checkpoint.

        Raises:
            ValueError: the backbone does not exist or does not fit.
        """
        super().__init__()
        self.settings: ModelSettings = settings
        self.leaders, self.kernel_sizes = settings.leaders, settings.kernel_sizes
        self.teacher = new_level_network(settings)
        self.teacher.requires_grad_(False)
        self.input_embedding = InputEmbedding(settings.modality_slots, settings.image_size)
        if settings.initial_embedding == "sum":
            self.input_embedding.begin_as_sum()
        self.encoder = new_level_network(settings)
        self.encoder.requires_grad_(settings.encoder == "trained")
        channels = self.encoder.channels
        self.compression = FeatureCompression(channels, settings, self.encoder.strides)
        self.levels = nn.ModuleList([CrossMoE(of_level, settings) for of_level in channels])
        self.split_batch: Callable[[ForwardPass, Tensor, Sequence[int], Tensor], Reconstruction] = whole_batch
        """How a batch goes through the network: whole, or in parts whose results are joined."""
        self.folded_teacher: FoldedTeacher | None = None
        """Gives the teacher's maps in its place, once its weights are final."""
        self.train()

    def train(self, mode: bool = True) -> UniMMAD:
        """Training mode never reaches the teacher, nor a frozen encoder or its frozen BatchNorm; where experts alone
        are trained, no part at all."""
        super().train(mode)
        if self.experts_alone:
            for part in self.children():
                part.eval()
        self.teacher.eval()
        if self.settings.encoder == "frozen":
            self.encoder.eval()
        if self.settings.encoder_batchnorm == "frozen":
            freeze_batchnorm(self.encoder)
        return self

    def load_backbone(self) -> str:
        """The teacher's; the encoder starts from them (both are ImageNet's in the paper)."""
        origin = load_backbone_weights(self.teacher, self.settings.backbone_weights)
        self.encoder.load_state_dict(self.teacher.state_dict())
        return origin

    def calibrate_backbone(self, batches: Iterable[Tensor]) -> None:
        calibrate_batchnorm(self.teacher, batches)
        self.encoder.load_state_dict(self.teacher.state_dict())

    def freeze_teacher(self) -> None:
        """From now on maps come from a folded copy of the teacher, on its device; checkpoints alone need the teacher
        itself, which goes to the host."""
        self.folded_teacher = FoldedTeacher(self.teacher)
        rest_on_host(self.teacher)

    def frozen_features(self) -> tuple[Any, str] | None:
        return self, "folded_teacher"

    def inference_form(self, cache_bytes: int) -> UniMMAD:
        from unimmad.model.inference import for_inference  # which is made of this class

        return for_inference(self, cache_bytes)

    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        from unimmad.model.fixed_modalities import FixedModalities  # which is made of this class

        return FixedModalities(self, slots)

    def networks(self) -> list[nn.Module]:
        """Backbones, input embedding and compression."""
        teacher = self.teacher if self.folded_teacher is None else self.folded_teacher.network
        return [teacher, self.input_embedding, self.encoder, self.compression]

    def forward(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        *,
        drawn_TCHW: Tensor | None = None,
    ) -> Reconstruction:
        """Args:
        images_TCHW: float32, normalised, tokens listed sample by sample.
        tokens_per_sample: B counts, on the host, each 1 or more, summing to T.
        slot_of_token_T: int64, the input slot of each token's modality.
        drawn_TCHW: what the encoder sees in place of ``images_TCHW``, in training.
        """
        if drawn_TCHW is not None:
            return self._reconstruct(images_TCHW, tokens_per_sample, slot_of_token_T, drawn_TCHW)
        return self.split_batch(self._reconstruct, images_TCHW, tokens_per_sample, slot_of_token_T)

    def _reconstruct(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        drawn_TCHW: Tensor | None = None,
    ) -> Reconstruction:
        batch = len(tokens_per_sample)
        sample_of_token_T = sample_of_token(tokens_per_sample, images_TCHW.device)
        teacher_maps = self.teacher_maps(images_TCHW)
        targets = [_unit_features(features) for features in teacher_maps]
        kept = tuple(teacher_maps) if self.keeps_teacher_maps and not self.training else ()
        del teacher_maps
        encoded_TCHW = images_TCHW if drawn_TCHW is None else drawn_TCHW
        embedded_BCHW = self.input_embedding(encoded_TCHW, sample_of_token_T, slot_of_token_T, batch)
        embedded_BCHW = embedded_BCHW.contiguous(memory_format=self.memory_format)
        shared_maps = [_unit_features(features) for features in self.compression(self.encoder(embedded_BCHW))]
        levels = cast(list[CrossMoE], self.levels)
        keys, routings = [], []
        for level, shared_BChw, target_TChw in zip(levels, shared_maps, targets, strict=True):
            key_BEhw, routing = level.route(shared_BChw, target_TChw, sample_of_token_T)
            keys.append(key_BEhw)
            routings.append(tuple(routing))
        decided: Sequence[Routing] = [routing for of_level in routings for routing in of_level]
        of_branches = iter(decided if self.on_routed is None else self.on_routed(decided))
        distances, apart, routings_before = [], [], []
        per_level = zip(levels, shared_maps, keys, targets, strict=True)
        for number, (level, shared_BChw, key_BEhw, target_TChw) in enumerate(per_level):
            of_level = list(islice(of_branches, len(level.branches)))
            reconstruction_TChw = level.reconstruct(
                shared_BChw, key_BEhw, of_level, tokens_per_sample, sample_of_token_T
            )
            distances.append(cosine_distance(target_TChw, reconstruction_TChw))
            if self.training and self.before:
                with torch.no_grad():
                    then_TChw, routing = self.before[number](
                        shared_BChw, target_TChw, tokens_per_sample, sample_of_token_T
                    )
                apart.append(cosine_distance(then_TChw, reconstruction_TChw))
                routings_before.append(tuple(routing))
        before = Before(tuple(apart), tuple(routings_before), self.old_leaders) if apart else None
        return Reconstruction(tuple(distances), tuple(routings), sample_of_token_T, batch, kept, before)

    def teacher_maps(self, images_TCHW: Tensor) -> list[Tensor]:
        """The teacher's features of every level, made in inference mode, so that no backward pass can save them:
        [T, C_l, h, w]."""
        teacher = self.folded_teacher or self.teacher
        with torch.inference_mode():
            maps: list[Tensor] = teacher(images_TCHW.contiguous(memory_format=self.memory_format))
        return maps

    def teacher_levels(self, images_TCHW: Tensor) -> list[Tensor]:
        with torch.autocast(images_TCHW.device.type, enabled=False):
            return [features.float() for features in self.teacher_maps(images_TCHW.float())]

    def own_levels(self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor) -> OwnLevels:
        output = UniMMAD.forward(self, images_TCHW, tokens_per_sample, slot_of_token_T)
        return OwnLevels(output.distances, output.routings)

    def loss(self, output: Reconstruction, facts: StepFacts) -> Loss:
        settings = facts.settings
        scale = balance_scale(facts.epoch, settings.balance_epochs, settings.balance_floor)
        if self.experts_alone:  # gates have been balanced before
            scale = settings.balance_floor
        return unimmad_loss(
            output,
            facts.weight_of_token_T,
            scale,
            settings.focal_gamma,
            facts.world_size,
            facts.global_sum,
            self.distillation,
        )

    def maps(self, output: Reconstruction) -> Tensor:
        return anomaly_maps(output.distances, output.sample_of_token_T, output.batch, self.settings.image_size)

    def parts(self, output: Reconstruction) -> Tensor:
        squares_THW = token_squares(output.distances, self.settings.image_size)
        return parts_of_squares(squares_THW, output.sample_of_token_T, output.batch)

    def routings(self, output: Reconstruction) -> Sequence[Sequence[Routing]]:
        return output.routings


def _unit_features(features_NChw: Tensor) -> Tensor:
    """In float32, laid out as C-MoE takes them."""
    return F.normalize(features_NChw.float(), dim=1).contiguous()
