"""The run over a test split: batches in, maps and scores out, metrics class by class, a few pictures.

Letters: B samples, H x W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from unimmad.config import EvaluationSettings
from unimmad.data.index import ModalityKind, Split
from unimmad.data.sample import Batch, Sample
from unimmad.data.shard_set import SampleRef, ShardSet
from unimmad.data.skipping import OnError, SkipLog
from unimmad.data.stream import evaluation_batches
from unimmad.evaluation.drawing import denormalise
from unimmad.evaluation.figures import SamplePicture
from unimmad.evaluation.metrics import MetricAccumulator
from unimmad.evaluation.report import ClassResult
from unimmad.model.anomaly_map import gaussian_blur, image_scores
from unimmad.model.unimmad import UniMMAD

MaskRule = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class ScoredClass:
    """One class's result and the samples chosen for pictures."""

    result: ClassResult
    pictures: tuple[SamplePicture, ...]
    """Anomalous samples first."""


@torch.no_grad()
def score_batch(
    model: UniMMAD, batch: Batch, settings: EvaluationSettings, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Blurred anomaly maps [B, H, W] and image scores [B], float32 on the CPU."""
    on_device = batch.to(device)
    output = model(on_device.images_TCHW, batch.tokens_per_sample, on_device.slot_of_token_T)
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
    on_error: OnError = "stop",
    skip_log: SkipLog | None = None,
) -> Iterator[ScoredClass]:
    """Score every sample of ``split`` and give each class's result as soon as it is complete.

    Corrupt samples stop it, or (``on_error="skip"``) are left out and counted in ``skip_log``.

    Raises:
        ValueError: the split is empty, a sample can't be read, or a modality's slot is beyond the model's.
    """
    slots = model.architecture.modality_slots
    if shards.max_slot >= slots:
        raise ValueError(f"the data use modality slot {shards.max_slot}; the model has slots 0 to {slots - 1} only")
    model.eval()
    references = shards.classes(split)
    chosen = {
        name: [ref.entry.key for ref in _pictured(refs, settings.pictures_per_class)]
        for name, refs in references.items()
    }
    batches = evaluation_batches(
        shards,
        split,
        image_size=model.architecture.image_size,
        batch_size=settings.batch_size,
        workers=workers,
        mask_resize=mask_resize,
        on_error=on_error,
        skip_log=skip_log,
    )
    total = sum(len(refs) for refs in references.values())
    with tqdm(total=total, desc=f"evaluate {split}", unit="image", disable=None if progress else True) as bar:
        for class_name, of_class in itertools.groupby(batches, key=lambda batch: batch.samples[0].class_name):
            metrics = MetricAccumulator()
            pictures = []
            for batch in of_class:
                maps_BHW, scores_B = score_batch(model, batch, settings, device)
                _add(metrics, batch.samples, maps_BHW, scores_B)
                pictures += _pictures(batch, maps_BHW, scores_B, chosen[class_name], shards)
                bar.update(batch.size)
            pictures.sort(key=lambda picture: chosen[picture.class_name].index(picture.key))
            yield ScoredClass(_result(class_name, metrics, shards), tuple(pictures))


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


def _pictured(refs: Sequence[SampleRef], count: int) -> list[SampleRef]:
    """A few samples worth a picture: the kinds of defect in turn, and one normal sample for comparison."""
    by_defect: dict[str, list[SampleRef]] = {}
    for ref in refs:
        by_defect.setdefault(ref.entry.defect, []).append(ref)
    normal = by_defect.pop("good", [])
    in_turn = [ref for group in itertools.zip_longest(*by_defect.values()) for ref in group if ref is not None]
    anomalous = in_turn[: max(0, count - 1)]
    return anomalous + normal[: count - len(anomalous)]


def _pictures(
    batch: Batch, maps_BHW: Tensor, scores_B: Tensor, keys: Sequence[str], shards: ShardSet
) -> list[SamplePicture]:
    pictures = []
    images_of_sample = batch.images_TCHW.split(batch.tokens_per_sample)
    for sample, images_MCHW, map_HW, score in zip(
        batch.samples, images_of_sample, maps_BHW, scores_B.tolist(), strict=True
    ):
        if sample.key not in keys:
            continue
        kinds = _kinds(shards, sample)
        images = tuple(
            (name, denormalise(image_CHW, kind))
            for name, image_CHW, kind in zip(sample.modalities, images_MCHW, kinds, strict=True)
        )
        mask_HW = None if sample.mask_HW is None else sample.mask_HW.numpy()
        pictures.append(
            SamplePicture(sample.class_name, sample.key, sample.defect, score, images, map_HW.numpy(), mask_HW)
        )
    return pictures


def _kinds(shards: ShardSet, sample: Sample) -> list[ModalityKind]:
    by_name = {modality.name: modality.kind for modality in shards.datasets[sample.dataset].modalities}
    return [by_name[name] for name in sample.modalities]
