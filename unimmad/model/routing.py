"""The gate of a MiMoE branch: which leaders a token goes to, and with what scores (METHOD part 6).

Letters: T tokens, L leaders, K routed leaders, E embed channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Routing:
    """A gate's decision for every token; everything is float32 but the ids."""

    logits_TL: Tensor
    probabilities_TL: Tensor
    """Softmax over all leaders: what the balance loss sees."""
    leaders_TK: Tensor
    """int64 global ids, best first."""
    scores_TK: Tensor
    """Weights of the routed leaders, summing to 1."""

    def of_tokens(self, tokens: slice) -> Routing:
        """The part of some tokens."""
        return Routing(
            self.logits_TL[tokens], self.probabilities_TL[tokens], self.leaders_TK[tokens], self.scores_TK[tokens]
        )

    @staticmethod
    def joined(parts: Sequence[Routing]) -> Routing:
        """All tokens of ``parts``, in order."""
        return Routing(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Routing)))


def route(condition_TE: Tensor, weight_LE: Tensor, bias_L: Tensor, top_k: int) -> Routing:
    """Softmax over leaders, the top K, their scores renormalised; in float32 whatever autocast says."""
    # bf16 logits would flip close decisions between precisions and ranks.
    with torch.autocast(condition_TE.device.type, enabled=False):
        logits_TL = F.linear(condition_TE.float(), weight_LE.float(), bias_L.float())
    probabilities_TL = logits_TL.softmax(dim=1)
    top_TK, leaders_TK = probabilities_TL.topk(top_k, dim=1)
    return Routing(logits_TL, probabilities_TL, leaders_TK, top_TK / top_TK.sum(dim=1, keepdim=True))


class Gate(nn.Module):
    """The trainable gate; its bias is the paper's."""

    def __init__(self, embed_dim: int, leaders: int, top_k: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, leaders)
        self.top_k = top_k

    def forward(self, condition_TE: Tensor) -> Routing:
        return route(condition_TE, self.linear.weight, self.linear.bias, self.top_k)
