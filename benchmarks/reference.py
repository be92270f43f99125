"""The authors' way of computing UniMMAD, written plainly from docs/METHOD.md: what ours is measured against.

Everything in C-MoE is done for each token: key, input and fixed expert too, though they depend on the sample only.
The routed leaders' kernels are composed for each token, and one grouped convolution runs the fixed and the routed
experts of all tokens; scores, concatenation and the last 1x1 come after it. Both backbones are whole, and what their
stage of stride 32 gives is dropped. Numbers are those of :class:`~unimmad.model.unimmad.UniMMAD`.

Letters: B samples, T tokens, C channels of a level, E embed channels, L leaders, K routed leaders, G banks, N base
kernels of a bank, J = G N base kernels in all, k x k kernel, h x w positions, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.anomaly_map import anomaly_maps, cosine_distance
from unimmad.model.backbone import STRIDES, Backbone, LevelNetwork, freeze_batchnorm
from unimmad.model.cross_moe import CrossCondition, CrossMoE, MiMoEBranch
from unimmad.model.routing import Routing
from unimmad.model.unimmad import Reconstruction, UniMMAD

LAST_STRIDE = 32
"""Of the backbone's stage that is computed and dropped."""


class ReferenceUniMMAD(nn.Module):
    """The whole network on the parameters of ``model``, which it shares; called as ``model`` is."""

    def __init__(self, model: UniMMAD) -> None:
        super().__init__()
        self.settings = model.settings
        self.teacher = whole(model.teacher)
        self.teacher.requires_grad_(False)
        self.input_embedding = model.input_embedding
        self.encoder = whole(model.encoder)
        self.compression = model.compression
        self.levels = nn.ModuleList([ReferenceCrossMoE(cast(CrossMoE, level)) for level in model.levels])
        self.train(model.training)

    def train(self, mode: bool = True) -> ReferenceUniMMAD:
        """Training mode never reaches the teacher, nor a frozen encoder's BatchNorm."""
        super().train(mode)
        self.teacher.eval()
        if self.settings.encoder_batchnorm == "frozen":
            freeze_batchnorm(self.encoder)
        return self

    def forward(self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor) -> Reconstruction:
        """As :meth:`UniMMAD.forward`."""
        batch = len(tokens_per_sample)
        sample_of_token_T = torch.tensor(
            [sample for sample, count in enumerate(tokens_per_sample) for _ in range(count)], device=images_TCHW.device
        )
        with torch.no_grad():
            teacher_maps = self.teacher(images_TCHW)
        embedded_BCHW = self.input_embedding(images_TCHW, sample_of_token_T, slot_of_token_T, batch)
        shared_maps = self.compression(self.encoder(embedded_BCHW))
        distances, routings = [], []
        for level, shared_BChw, teacher_TChw in zip(self.levels, shared_maps, teacher_maps, strict=True):
            shared_TChw = F.normalize(shared_BChw.float(), dim=1).index_select(0, sample_of_token_T)
            target_TChw = F.normalize(teacher_TChw.float(), dim=1)
            reconstruction_TChw, routing = level(shared_TChw, target_TChw)
            distances.append(cosine_distance(target_TChw, reconstruction_TChw))
            routings.append(tuple(routing))
        return Reconstruction(tuple(distances), tuple(routings), sample_of_token_T, batch)

    @property
    def image_size(self) -> int:
        return self.settings.image_size

    def maps(self, reconstruction: Reconstruction) -> Tensor:
        """Anomaly maps before blurring: float32 [B, H, W]."""
        return anomaly_maps(
            reconstruction.distances, reconstruction.sample_of_token_T, reconstruction.batch, self.image_size
        )

    def routings(self, reconstruction: Reconstruction) -> Sequence[Sequence[Routing]]:
        return reconstruction.routings


def whole(network: LevelNetwork) -> nn.Module:
    """A convolutional network to its end. A vision transformer is itself plain already."""
    return WholeBackbone(network) if isinstance(network, Backbone) else network


class WholeBackbone(nn.Module):
    """A timm network to its end, on the weights of one that is cut earlier; gives the cut one's maps.

    The stages that the cut network lacks have random weights.
    """

    def __init__(self, cut: Backbone) -> None:
        super().__init__()
        with next(cut.parameters()).device:
            self.network = timm.create_model(
                cut.name, pretrained=False, features_only=True, out_indices=_all_stages(cut.name)
            )
        for name, stage in cut.network.named_children():
            setattr(self.network, name, stage)

    def forward(self, images_NCHW: Tensor) -> list[Tensor]:
        return [features.relu() for features in self.network(images_NCHW)][: len(STRIDES)]


class ReferenceCrossMoE(nn.Module):
    """C-MoE of one level, token by token (METHOD part 6)."""

    def __init__(self, level: CrossMoE) -> None:
        super().__init__()
        self.key = level.key
        self.query = level.query
        self.condition = ReferenceCondition(level.condition)
        self.branches = nn.ModuleList([ReferenceBranch(cast(MiMoEBranch, branch)) for branch in level.branches])
        self.out = level.out

    def forward(self, shared_TChw: Tensor, teacher_TChw: Tensor) -> tuple[Tensor, list[Routing]]:
        """Reconstruction [T, C, h, w] of the teacher's features, and each branch's routing."""
        key_TEhw = self.key(shared_TChw)
        query_TEhw = self.query(teacher_TChw)
        condition_TE = self.condition(key_TEhw, query_TEhw)
        outputs, routings = zip(*[branch(key_TEhw, condition_TE) for branch in self.branches], strict=True)
        return self.out(torch.cat(outputs, dim=1)), list(routings)


class ReferenceCondition(nn.Module):
    """The cross condition of key and query, joined."""

    def __init__(self, condition: CrossCondition) -> None:
        super().__init__()
        self.join = condition.join
        self.batch_norm = condition.batch_norm
        self.group_norm = condition.group_norm
        self.mix = condition.mix

    def forward(self, key_TEhw: Tensor, query_TEhw: Tensor) -> Tensor:
        """-> [T, E]."""
        joined_TEhw = self.join(torch.cat([key_TEhw, query_TEhw], dim=1))
        x_TEhw = self.group_norm(F.gelu(self.batch_norm(joined_TEhw))).relu()
        return self.mix(x_TEhw).mean(dim=(2, 3))


class ReferenceBranch(nn.Module):
    """A MiMoE branch: fixed expert and K routed leaders in one grouped convolution over all tokens."""

    def __init__(self, branch: MiMoEBranch) -> None:
        super().__init__()
        self.pre = branch.pre
        self.fixed_EEkk = branch.fixed_EEkk
        self.bank = branch.bank
        routed: Any = branch.routed
        self.gate_linear: nn.Linear = routed.gate.linear
        self.top_k: int = routed.gate.top_k
        self.leader_logits_LNE: nn.Parameter = routed.leaders.logits_LNE
        self.post = branch.post
        self.norm = branch.norm

    def forward(self, key_TEhw: Tensor, condition_TE: Tensor) -> tuple[Tensor, Routing]:
        """-> [T, E, h, w] and the gate's decision."""
        x_TEhw = self.pre(key_TEhw)
        routing = self.route(condition_TE)
        tokens = len(x_TEhw)
        fixed_T1EEkk = self.fixed_EEkk.expand(tokens, 1, *self.fixed_EEkk.shape)
        kernels_TMEEkk = torch.cat([fixed_T1EEkk, self.leader_kernels(routing.leaders_TK)], dim=1)
        experts_TMEhw = filter_each(x_TEhw, kernels_TMEEkk)
        routed_TEhw = (experts_TMEhw[:, 1:] * routing.scores_TK[:, :, None, None, None]).sum(dim=1)
        output_TEhw = self.post(torch.cat([experts_TMEhw[:, 0], routed_TEhw], dim=1))
        return self.norm(output_TEhw).relu(), routing

    def route(self, condition_TE: Tensor) -> Routing:
        logits_TL = self.gate_linear(condition_TE)
        probabilities_TL = logits_TL.softmax(dim=1)
        top_TK, leaders_TK = probabilities_TL.topk(self.top_k, dim=1)
        return Routing(logits_TL, probabilities_TL, leaders_TK, top_TK / top_TK.sum(dim=1, keepdim=True))

    def leader_kernels(self, leaders_TK: Tensor) -> Tensor:
        """The kernel of every routed leader: [T, K, E, E, k, k], mixed per output channel from its bank."""
        logits_LNE, kernels_GNEEkk = self.leader_logits_LNE, self.bank.kernels_GNEEkk
        banks = len(kernels_GNEEkk)
        leaders_per_bank = len(logits_LNE) // banks
        shares_TKNE = logits_LNE.softmax(dim=1)[leaders_TK]
        own_bank_TKG = (leaders_TK // leaders_per_bank)[..., None] == torch.arange(banks, device=leaders_TK.device)
        shares_TKJE = (shares_TKNE[:, :, None] * own_bank_TKG[..., None, None]).flatten(2, 3)
        return torch.einsum("tkjo,joixy->tkoixy", shares_TKJE, kernels_GNEEkk.flatten(0, 1))


def filter_each(x_TEhw: Tensor, kernels_TMEEkk: Tensor) -> Tensor:
    """Every token's map through each of its M kernels, all in one grouped convolution: [T, M, E, h, w]."""
    tokens, kernels, embed_dim, _, size, _ = kernels_TMEEkk.shape
    repeated_TMEhw = x_TEhw[:, None].expand(-1, kernels, -1, -1, -1)
    filtered_hw = F.conv2d(
        repeated_TMEhw.flatten(0, 2)[None],
        kernels_TMEEkk.flatten(0, 2),
        padding=size // 2,
        groups=tokens * kernels,
    )
    return filtered_hw.unflatten(1, (tokens, kernels, embed_dim))[0]


def _all_stages(name: str) -> tuple[int, ...]:
    """Indices of the features at strides 4, 8, 16 and 32."""
    features = timm.create_model(name, pretrained=False, features_only=True).feature_info
    reductions = zip(features.out_indices, features.reduction(), strict=True)
    return tuple(index for index, reduction in reductions if reduction in (*STRIDES, LAST_STRIDE))
