"""On a processor, a batch of large images is scored a few samples at a time.

A batch saves the overhead of operations, which is much for small maps and little for large ones, while its maps take
memory for every sample. So only small images go through as whole batches; docs/speed.md says what others lose by it.

Letters: T tokens, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from unimmad.model.routing import Routing
from unimmad.model.unimmad import ForwardPass, Reconstruction

PART_PIXELS = 2**17
"""Of all tokens of a part: two of the paper's 256 x 256 images."""


def in_microbatches(
    compute: ForwardPass, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor
) -> Reconstruction:
    """As ``compute``, which on a processor gets whole samples of at most ``PART_PIXELS``, but at least one of them."""
    height, width = images_TCHW.shape[2:]
    most_tokens = PART_PIXELS // (height * width)
    if images_TCHW.device.type != "cpu" or len(images_TCHW) <= most_tokens:
        return compute(images_TCHW, tokens_per_sample, slot_of_token_T)
    parts, start = [], 0
    for counts in _split(tokens_per_sample, most_tokens):
        tokens = slice(start, start + sum(counts))
        parts.append(compute(images_TCHW[tokens], counts, slot_of_token_T[tokens]))
        start = tokens.stop
    return _joined(parts)


def _split(tokens_per_sample: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Samples' counts in order, in groups of no more tokens than given where a group has several samples."""
    group: list[int] = []
    for count in tokens_per_sample:
        if group and sum(group) + count > most_tokens:
            yield group
            group = []
        group.append(count)
    yield group


def _joined(parts: Sequence[Reconstruction]) -> Reconstruction:
    first_samples = accumulate((part.batch for part in parts), initial=0)
    samples = [part.sample_of_token_T + first for part, first in zip(parts, first_samples, strict=False)]
    return Reconstruction(
        tuple(torch.cat(of_level) for of_level in zip(*(part.distances for part in parts), strict=True)),
        tuple(
            tuple(Routing.joined(of_branch) for of_branch in zip(*of_level, strict=True))
            for of_level in zip(*(part.routings for part in parts), strict=True)
        ),
        torch.cat(samples),
        sum(part.batch for part in parts),
        tuple(torch.cat(of_level) for of_level in zip(*(part.teacher_maps for part in parts), strict=True)),
    )
