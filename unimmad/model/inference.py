"""The model's inference form: the same numbers, to rounding, in fewer operations (METHOD, Exact algebra).

Fixed expert, routed experts and the 1x1 behind them are one convolution a token, whose kernel is the fixed expert's
product with the 1x1 plus the score-weighted products of the routed leaders. These do not change any more, so they are
kept. BatchNorm is folded into the convolutions, and those of large maps need fewer multiplications (convolution.py).
On a processor a batch of large images goes through in parts (parts.py).

Letters: B samples, T tokens, K routed leaders, U distinct leaders of a sample, E embed channels (in and out),
k x k kernel, h x w (or P) positions, C channels of a level, J channels of all branches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn

from unimmad.model.backends.convolution import fast_convolution, use_fast_convolutions
from unimmad.model.backends.microbatch import in_microbatches
from unimmad.model.blocks import BasicBlock, DecoderBottleneck
from unimmad.model.cross_moe import CrossMoE, LocalRouting, MiMoEBranch, over_joined_maps
from unimmad.model.folding import fold_batchnorm
from unimmad.model.leaders import convolve_tokens
from unimmad.model.routing import Routing
from unimmad.model.unimmad import UniMMAD

DEFAULT_CACHE_BYTES = 256 * 2**20
"""Less than what the paper's model saves by leaving out its backbones' last stages."""


def for_inference(model: UniMMAD, cache_bytes: int = DEFAULT_CACHE_BYTES) -> UniMMAD:
    """Bring ``model`` into its inference form, in place; it can't be trained, saved, exported or moved afterwards.

    Any number of threads may score with it at once: what belongs to a batch goes with its call.

    Args:
        model: in its local form, on its device. Of one that has the inference form already, the cache is resized.
        cache_bytes: what the leaders' products may take; beyond it the least recently used go.
    """
    if isinstance(model.on_routed, KernelCache):
        model.on_routed.resize(cache_bytes)
        return model
    model.eval().requires_grad_(False)
    model.folded_teacher = None  # the teacher itself is folded
    blocks = [module for module in model.compression.modules() if isinstance(module, BasicBlock | DecoderBottleneck)]
    for network in (model.teacher, model.encoder, model.input_embedding.stem, *blocks):
        fold_batchnorm(network)
    for part in (model.teacher, model.encoder, model.input_embedding.stem, model.compression):
        use_fast_convolutions(part)
    branches = []
    for level in cast(list[CrossMoE], model.levels):
        level.condition.convolve = fast_convolution
        level.convolve_last = over_maps_in_turn
        fast = [InferenceBranch(cast(MiMoEBranch, branch)) for branch in level.branches]
        level.branches = nn.ModuleList(fast)
        branches += fast
    model.on_routed = KernelCache(branches, cache_bytes)
    model.split_batch = in_microbatches
    return model


def over_maps_in_turn(maps: Iterator[Tensor], convolution: nn.Conv2d) -> Tensor:
    """As ``over_joined_maps``; on a processor added up branch by branch, so that their maps are never all in memory.

    Without gradients there, as transformed convolutions.
    """
    weight_CJ = convolution.weight.flatten(1)
    if weight_CJ.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        # TF32 is for convolutions, and bfloat16 would round each summand.
        return over_joined_maps(maps, convolution)
    first_TEhw = next(maps)
    size, weights = first_TEhw.shape[2:], weight_CJ.split(first_TEhw.shape[1], dim=1)
    sum_TCP = weights[0] @ first_TEhw.flatten(2)
    del first_TEhw
    for weight_CE in weights[1:]:
        # Not baddbmm_, whose operations PyTorch's FlopCounterMode does not count.
        torch.baddbmm(sum_TCP, weight_CE.expand(len(sum_TCP), -1, -1), next(maps).flatten(2), out=sum_TCP)
    return sum_TCP.unflatten(2, size)


Products = Mapping[int, Tensor]
"""Kernels by leader, [E, E, k, k] each, with the last 1x1 taken in."""


@dataclass(frozen=True)
class RoutingWithProducts(Routing):
    """A gate's decision, and what its branch needs for this batch."""

    ids_TK: list[list[int]]
    """``leaders_TK`` on the host."""
    products: Products
    """Of the leaders that are routed to; empty where they are too many to keep."""


class InferenceBranch(nn.Module):
    """A branch with one convolution a token; its leaders' products are at hand, or are composed where they are not."""

    def __init__(self, branch: MiMoEBranch) -> None:
        super().__init__()
        assert isinstance(branch.routed, LocalRouting), "the inference form is made of the local form"
        # Not the branch itself: its fixed expert goes when nothing refers to it.
        self.pre, self.bank, self.routed, self.norm = branch.pre, branch.bank, branch.routed, branch.norm
        for_fixed_EE, for_routed_EE = branch.post.weight.flatten(1).chunk(2, dim=1)
        self.for_routed_EE: Tensor
        self.fixed_EEkk: Tensor
        self.register_buffer("for_routed_EE", for_routed_EE)
        fixed_EEkk = (for_fixed_EE @ branch.fixed_EEkk.flatten(1)).view_as(branch.fixed_EEkk)
        self.register_buffer("fixed_EEkk", fixed_EEkk)

    def product(self, leader: int) -> Tensor:
        """The leader's kernel with the last 1x1 taken in: [E, E, k, k]."""
        with torch.autocast(self.for_routed_EE.device.type, enabled=False):
            kernel_EEkk = self.routed.leaders.kernel_of(leader, self.bank.kernels_GNEEkk)
            return (self.for_routed_EE @ kernel_EEkk.flatten(1)).view_as(kernel_EEkk)

    def forward(
        self, key_BEhw: Tensor, routing: Routing, tokens_per_sample: Sequence[int], sample_of_token_T: Tensor
    ) -> Tensor:
        """As ``MiMoEBranch``: [T, E, h, w]."""
        return self.norm(torch.cat(list(self._samples(key_BEhw, routing, tokens_per_sample)))).relu_()

    def _samples(self, key_BEhw: Tensor, routing: Routing, tokens_per_sample: Sequence[int]) -> Iterator[Tensor]:
        """What comes of each sample's M tokens: [M, E, h, w]."""
        start = 0
        for x_1Ehw, count in zip(self.pre(key_BEhw).split(1), tokens_per_sample, strict=True):
            tokens = slice(start, start + count)
            if isinstance(routing, RoutingWithProducts) and routing.products:
                yield self._sample(x_1Ehw, routing.ids_TK[tokens], routing.scores_TK[tokens], routing.products)
            else:
                yield self._convolve(x_1Ehw, self._composed(routing.of_tokens(tokens)))
            start += count

    def _composed(self, routing: Routing) -> Tensor:
        """One kernel for each of a sample's M tokens, made for it alone, so that memory does not grow with the batch.

        Returns:
            [M, E, E, k, k].
        """
        # In fp32 as the products, so that numbers do not depend on what the cache holds.
        with torch.autocast(self.for_routed_EE.device.type, enabled=False):
            kernels_MEEkk = self.routed.mixed_kernels(routing, self.bank.kernels_GNEEkk, self.for_routed_EE)
        return kernels_MEEkk.add_(self.fixed_EEkk)

    def _sample(self, x_1Ehw: Tensor, ids_TK: Sequence[Sequence[int]], scores_TK: Tensor, products: Products) -> Tensor:
        """One sample's tokens, by whichever way needs fewer convolutions."""
        distinct_U = sorted({leader for of_token in ids_TK for leader in of_token})
        if len(distinct_U) + 1 < len(ids_TK):
            return self._by_leader(x_1Ehw, distinct_U, ids_TK, scores_TK, products)
        tokens = zip(ids_TK, scores_TK, strict=True)
        return self._convolve(x_1Ehw, (self._kernel(*token, products) for token in tokens))

    def _by_leader(
        self,
        x_1Ehw: Tensor,
        distinct_U: Sequence[int],
        ids_TK: Sequence[Sequence[int]],
        scores_TK: Tensor,
        products: Products,
    ) -> Tensor:
        """Tokens that share leaders share their convolutions: fixed and distinct leaders once, then weighted sums."""
        maps_NEhw = self._convolve(x_1Ehw, [self.fixed_EEkk, *(products[leader] for leader in distinct_U)])
        place_TK = torch.tensor([[distinct_U.index(leader) for leader in of_token] for of_token in ids_TK])
        shares_TU = scores_TK.new_zeros(len(ids_TK), len(distinct_U))
        shares_TU = shares_TU.scatter_add(1, place_TK.to(scores_TK.device, non_blocking=True), scores_TK)
        return torch.einsum("tu,uehw->tehw", shares_TU.to(maps_NEhw.dtype), maps_NEhw[1:]) + maps_NEhw[0]

    def _kernel(self, ids_K: Sequence[int], scores_K: Tensor, products: Products) -> Tensor:
        """One token's whole branch: [E, E, k, k]."""
        kernel_EEkk = self.fixed_EEkk
        for leader, score in zip(ids_K, scores_K, strict=True):
            kernel_EEkk = torch.addcmul(kernel_EEkk, products[leader], score)
        return kernel_EEkk

    def _convolve(self, x_1Ehw: Tensor, kernels_EEkk: Iterable[Tensor]) -> Tensor:
        """Each kernel over the map: [N, E, h, w]."""
        if x_1Ehw.device.type == "cpu":  # one after the other, so that memory is needed for one of them
            return torch.cat([fast_convolution(x_1Ehw, kernel_EEkk) for kernel_EEkk in kernels_EEkk])
        kernels_NEEkk = torch.stack(list(kernels_EEkk))
        return convolve_tokens(x_1Ehw, kernels_NEEkk, [len(kernels_NEEkk)])


class KernelCache:
    """The leaders' products of all branches, least recently used ones dropped beyond a number of bytes.

    Called with all gates' decisions, it gives every branch what its tokens need: one read back to the host a pass.
    Threads take turns here. What a batch of another thread was given stays in memory until that batch is done.
    """

    def __init__(self, branches: Sequence[InferenceBranch], limit_bytes: int) -> None:
        self.branches = tuple(branches)
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        """By branch and leader, the least recently used first."""
        self._turn = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For copies of the model; each has a lock of its own."""
        return {name: value for name, value in vars(self).items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn = Lock()

    def __call__(self, routings: Sequence[Routing]) -> list[RoutingWithProducts]:
        ids_GTK = torch.stack([routing.leaders_TK for routing in routings]).tolist()
        with self._turn:
            leaders_of = self._fitting([{leader for of_token in ids_TK for leader in of_token} for ids_TK in ids_GTK])
            self._drop_for([(place, leader) for place, leaders in enumerate(leaders_of) for leader in leaders])
            products_of = [
                {leader: self._product(place, leader) for leader in leaders} for place, leaders in enumerate(leaders_of)
            ]
        return [
            RoutingWithProducts(**vars(routing), ids_TK=ids_TK, products=products)
            for routing, ids_TK, products in zip(routings, ids_GTK, products_of, strict=True)
        ]

    def _fitting(self, needed: Sequence[set[int]]) -> list[list[int]]:
        """The leaders of each branch, none where they do not fit beside those of the branches before.

        The batch alone decides, not what is kept already, so that a batch gives the same numbers to the last bit
        whatever went before it.
        """
        room, fitting = self.limit_bytes, []
        for branch, leaders in zip(self.branches, needed, strict=True):
            size = len(leaders) * branch.fixed_EEkk.nbytes
            fits = size <= room
            room -= size if fits else 0
            fitting.append(sorted(leaders) if fits else [])
        return fitting

    def _product(self, place: int, leader: int) -> Tensor:
        """Kept or made."""
        if (place, leader) not in self._kept:
            branch = self.branches[place]
            self._kept[place, leader] = branch.product(leader)
            self.held_bytes += branch.fixed_EEkk.nbytes
        return self._kept[place, leader]

    def resize(self, limit_bytes: int) -> None:
        """From now on keep no more than this; what is kept already goes where it is more."""
        with self._turn:
            self.limit_bytes = limit_bytes
            while self.held_bytes > limit_bytes:
                self.held_bytes -= self._kept.popitem(last=False)[1].nbytes

    def _drop_for(self, needed: Sequence[tuple[int, int]]) -> None:
        """Make room for the batch's products, at the cost of those longest unused."""
        missing = 0
        for key in needed:
            if key in self._kept:
                self._kept.move_to_end(key)
            else:
                missing += self.branches[key[0]].fixed_EEkk.nbytes
        wanted = set(needed)
        for key in list(self._kept):
            if self.held_bytes + missing <= self.limit_bytes or key in wanted:
                return
            self.held_bytes -= self._kept.pop(key).nbytes
