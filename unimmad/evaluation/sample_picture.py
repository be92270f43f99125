"""The samples of a class that get a picture: which they are, and one of them scored again to be drawn.

Maps are not kept while a class is scored: which samples are worth a picture is known only once all of them have their
score, and a few more forward passes cost less than the memory of all maps.

Letters: I samples of a class, H x W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from numpy.typing import NDArray

from unimmad.config import EvaluationSettings
from unimmad.data.index import ModalityKind
from unimmad.data.sample import Sample, collate
from unimmad.data.shard_set import SampleRef, ShardSet
from unimmad.evaluation.drawing import denormalise
from unimmad.evaluation.figures import SamplePicture
from unimmad.evaluation.scoring import MaskRule, Precision, score_batch
from unimmad.model.unimmad import UniMMAD

PictureChoice = Callable[[Sequence[SampleRef], NDArray, int], Sequence[SampleRef]]
"""Chooses a class's pictures: (its samples, their image scores [I], how many at most) -> samples, in drawing order."""


def defects_in_turn(refs: Sequence[SampleRef], image_scores_I: NDArray, count: int) -> list[SampleRef]:
    """The kinds of defect in turn, whatever their scores, and one normal sample for comparison."""
    by_defect: dict[str, list[SampleRef]] = {}
    for ref in refs:
        by_defect.setdefault(ref.entry.defect, []).append(ref)
    normal = by_defect.pop("good", [])
    in_turn = [ref for group in itertools.zip_longest(*by_defect.values()) for ref in group if ref is not None]
    anomalous = in_turn[: max(0, count - 1)]
    return anomalous + normal[: count - len(anomalous)]


def sample_picture(
    model: UniMMAD,
    shards: ShardSet,
    ref: SampleRef,
    settings: EvaluationSettings,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    mask_resize: MaskRule = "nearest",
) -> SamplePicture:
    """Read one sample, score it alone, and give what is drawn of it. The model must be in eval mode, on ``device``.

    Raises:
        ValueError: the sample can't be read.
    """
    sample = shards.read(ref, model.architecture.image_size, mask_resize)
    maps_BHW, scores_B = score_batch(model, collate([sample]), settings, device, precision)
    images = tuple(
        (name, denormalise(image_CHW, kind))
        for name, image_CHW, kind in zip(sample.modalities, sample.images_MCHW, _kinds(shards, sample), strict=True)
    )
    return SamplePicture(
        class_name=sample.class_name,
        key=sample.key,
        defect=sample.defect,
        score=scores_B.item(),
        images=images,
        map_HW=maps_BHW[0].numpy(),
        mask_HW=None if sample.mask_HW is None else sample.mask_HW.numpy(),
    )


def _kinds(shards: ShardSet, sample: Sample) -> list[ModalityKind]:
    by_name = {modality.name: modality.kind for modality in shards.datasets[sample.dataset].modalities}
    return [by_name[name] for name in sample.modalities]
