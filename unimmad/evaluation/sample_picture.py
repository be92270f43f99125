"""One sample, scored again to be drawn.

Letters: H x W pixels.
"""

from __future__ import annotations

import torch

from unimmad.config import EvaluationSettings, Precision
from unimmad.data.index import ModalityKind
from unimmad.data.reading.shard_set import SampleRef, ShardSet
from unimmad.data.sample import Sample, collate
from unimmad.evaluation.scoring import MaskRule, score_batch
from unimmad.model.unimmad import UniMMAD
from unimmad.report.drawing import denormalise
from unimmad.report.figures import SamplePicture


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
    sample = shards.read(ref, model.settings.image_size, mask_resize)
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
