"""The run over a test split: batches in, maps and scores out, metrics class by class, a few pictures.

Letters: B samples of a batch, I samples of a class, H x W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from unimmad.config import EvaluationSettings
from unimmad.data.index import ModalityKind, Split
from unimmad.data.sample import Batch, Sample, collate
from unimmad.data.shard_set import SampleRef, ShardSet
from unimmad.data.stream import evaluation_batches
from unimmad.evaluation.drawing import denormalise
from unimmad.evaluation.expert_usage import ClassUsage, UsageCounter
from unimmad.evaluation.figures import SamplePicture
from unimmad.evaluation.metrics import MetricAccumulator
from unimmad.evaluation.pixel_curves import PixelCurves
from unimmad.evaluation.report import ClassResult
from unimmad.evaluation.selection import failures_first
from unimmad.model.anomaly_map import gaussian_blur, image_scores
from unimmad.model.unimmad import UniMMAD

MaskRule = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class ScoredClass:
    """One class's result and the samples chosen for pictures."""

    result: ClassResult
    pictures: tuple[SamplePicture, ...]
    """Failures first."""
    image_scores: NDArray[np.float64]
    """[I], in index order."""
    labels: NDArray[np.bool_]
    """[I], True where anomalous."""
    keys: tuple[str, ...]
    """I sample keys."""
    curves: PixelCurves | None
    """None where a mask is missing or a label has no pixel."""
    usage: ClassUsage


@torch.no_grad()
def score_batch(
    model: UniMMAD,
    batch: Batch,
    settings: EvaluationSettings,
    device: torch.device,
    usage: UsageCounter | None = None,
) -> tuple[Tensor, Tensor]:
    """Blurred anomaly maps [B, H, W] and image scores [B], float32 on the CPU; ``usage`` counts the routing."""
    on_device = batch.to(device)
    output = model(on_device.images_TCHW, batch.tokens_per_sample, on_device.slot_of_token_T)
    if usage is not None:
        usage.add(batch.samples, output.routings)
    maps_BHW = gaussian_blur(model.maps(output), settings.blur_kernel, settings.blur_sigma)
    return maps_BHW.cpu(), image_scores(maps_BHW, settings.top_share).cpu()


def evaluate_classes(
    model: UniMMAD,
    shards: ShardSet,
    split: Split,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    workers: int,
    mask_resize: MaskRule = "nearest",
    progress: bool = True,
) -> Iterator[ScoredClass]:
    """Score every sample of ``split`` and give each class's result as soon as it is complete.

    Raises:
        ValueError: the split is empty, a sample can't be read, or a modality's slot is beyond the model's.
    """
    slots = model.architecture.modality_slots
    if shards.max_slot >= slots:
        raise ValueError(f"the data use modality slot {shards.max_slot}; the model has slots 0 to {slots - 1} only")
    model.eval()
    references = shards.classes(split)
    batches = evaluation_batches(
        shards,
        split,
        image_size=model.architecture.image_size,
        batch_size=settings.batch_size,
        workers=workers,
        mask_resize=mask_resize,
    )
    total = sum(len(refs) for refs in references.values())
    with tqdm(total=total, desc=f"evaluate {split}", unit="image", disable=None if progress else True) as bar:
        for class_name, of_class in itertools.groupby(batches, key=lambda batch: batch.samples[0].class_name):
            metrics = MetricAccumulator()
            usage = UsageCounter(class_name, model.architecture.leaders)
            scores: list[float] = []
            for batch in of_class:
                maps_BHW, scores_B = score_batch(model, batch, settings, device, usage)
                _add(metrics, batch.samples, maps_BHW, scores_B)
                scores += scores_B.tolist()
                bar.update(batch.size)
            refs = references[class_name]
            scores_I, labels_I = np.array(scores), np.array([ref.entry.anomalous for ref in refs])
            defects = [ref.entry.defect for ref in refs]
            chosen = failures_first(scores_I, labels_I, defects, settings.pictures_per_class)
            pictures = (
                replace(sample_picture(model, shards, refs[choice.index], settings, device), note=choice.note)
                for choice in chosen
            )
            yield ScoredClass(
                _result(class_name, metrics, shards),
                tuple(pictures),
                scores_I,
                labels_I,
                tuple(ref.entry.key for ref in refs),
                metrics.curves(),
                usage.usage(),
            )


def sample_picture(
    model: UniMMAD, shards: ShardSet, ref: SampleRef, settings: EvaluationSettings, device: torch.device
) -> SamplePicture:
    """Read one sample, score it alone, and give what is drawn of it.

    Raises:
        ValueError: the sample can't be read.
    """
    sample = shards.read(ref, model.architecture.image_size)
    maps_BHW, scores_B = score_batch(model, collate([sample]), settings, device)
    images = tuple(
        (name, denormalise(image_CHW, kind))
        for name, image_CHW, kind in zip(sample.modalities, sample.images_MCHW, _kinds(shards, sample), strict=True)
    )
    mask_HW = None if sample.mask_HW is None else sample.mask_HW.numpy()
    return SamplePicture(
        sample.class_name, sample.key, sample.defect, scores_B.item(), images, maps_BHW[0].numpy(), mask_HW
    )


def _add(metrics: MetricAccumulator, samples: Sequence[Sample], maps_BHW: Tensor, scores_B: Tensor) -> None:
    for sample, map_HW, score in zip(samples, maps_BHW, scores_B.tolist(), strict=True):
        mask_HW = None if sample.mask_HW is None else sample.mask_HW.numpy()
        name = f"{sample.class_name} {sample.key}"
        metrics.add(map_HW.numpy(), mask_HW, score, int(sample.anomalous), name=name)


def _result(class_name: str, metrics: MetricAccumulator, shards: ShardSet) -> ClassResult:
    dataset, _, short_name = class_name.partition("/")
    return ClassResult(
        dataset=dataset,
        field=shards.datasets[dataset].field,
        class_name=short_name,
        normal=metrics.normal,
        anomalous=metrics.anomalous,
        metrics=metrics.compute(),
    )


def _kinds(shards: ShardSet, sample: Sample) -> list[ModalityKind]:
    by_name = {modality.name: modality.kind for modality in shards.datasets[sample.dataset].modalities}
    return [by_name[name] for name in sample.modalities]
