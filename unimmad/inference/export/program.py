"""What is exported: images of fixed modalities in, blurred maps and scores out.

Left outside is what needs the decoded image at its own size: Pillow's antialiased resize (the operators of ONNX and
torch round and weigh its taps otherwise, which moves maps by more than the tolerance of 1e-4), and for depth the
foreground's mean, which is taken before the resize.

Letters: B samples, M modalities, C = 3 channels, H x W the model's image size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.thresholds import Thresholds
from unimmad.config import EvaluationSettings
from unimmad.data.index import Modality
from unimmad.data.prepare import normalisation
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.export.metadata import ExportMetadata
from unimmad.model.anomaly_map import gaussian_blur, image_scores


class ExportProgram(nn.Module):
    """Normalisation, network, map, blur and score."""

    def __init__(
        self, network: nn.Module, modalities: Sequence[Modality], settings: EvaluationSettings, image_size: int
    ) -> None:
        super().__init__()
        self.network = network
        self.blur, self.score = settings.blur(image_size), (settings.top_share, settings.score_pool)
        means, stds = zip(*(normalisation(modality.kind) for modality in modalities), strict=True)
        self.register_buffer("mean_MC11", torch.tensor(means)[:, :, None, None])
        self.register_buffer("std_MC11", torch.tensor(stds)[:, :, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, C, H, W], float32, RGB and gray in 0-1 and depth as ``data.prepare.resize`` gives it -> maps
        [B, H, W] and scores [B]."""
        maps_BHW = self.network((images - self.get_buffer("mean_MC11")) / self.get_buffer("std_MC11"))
        maps_BHW = gaussian_blur(maps_BHW, *self.blur)
        return maps_BHW, image_scores(maps_BHW, *self.score)


def build_program(
    checkpoint: LoadedCheckpoint,
    catalogue: Catalogue,
    thresholds: Thresholds | None,
    *,
    dataset: str | None = None,
    modality_names: Sequence[str] | None = None,
    added: Collection[str] = (),
    version: str,
) -> tuple[ExportProgram, ExportMetadata]:
    """The program for the images of one dataset; the checkpoint's model must not be used by itself afterwards.

    Args:
        checkpoint: a loaded one.
        catalogue: what it was trained on.
        thresholds: those beside it, or None.
        dataset: whose modalities; may be left out where there is one only.
        modality_names: some of them; None for all.
        added: classes added after training, which the file does not know.
        version: of this package.

    Raises:
        ValueError: no such dataset or modality, or a slot that the model does not have.
    """
    name = _choose_dataset(catalogue, dataset)
    modalities = _choose_modalities(name, catalogue.datasets[name].modalities, modality_names)
    settings, size = checkpoint.recipe.evaluation, checkpoint.recipe.model.image_size
    network = checkpoint.model.with_fixed_modalities([modality.slot for modality in modalities])
    metadata = ExportMetadata(
        unimmad_version=version,
        recipe=checkpoint.recipe.name,
        step=checkpoint.step,
        dataset=name,
        field=catalogue.datasets[name].field,
        modalities=modalities,
        classes=tuple(found for found in catalogue.classes if found.startswith(f"{name}/") and found not in added),
        image_size=size,
        evaluation=settings,
        aspect=checkpoint.recipe.data.aspect,
        roi=catalogue.datasets[name].roi,
        # They were made with the class known, of which a file is told nothing.
        thresholds=None if thresholds is None or checkpoint.model.looks_at_class else thresholds.only(name, added),
        misses_class=checkpoint.model.looks_at_class,
    )
    return ExportProgram(network, modalities, settings, size).eval(), metadata


def _choose_dataset(catalogue: Catalogue, given: str | None) -> str:
    known = ", ".join(catalogue.datasets)
    if given is None:
        if len(catalogue.datasets) > 1:
            raise ValueError(f"a file takes the images of one dataset; say which with --dataset: {known}")
        return next(iter(catalogue.datasets))
    if given not in catalogue.datasets:
        raise ValueError(f"--dataset {given} is not known; known are {known}")
    return given


def _choose_modalities(
    dataset: str, available: Sequence[Modality], names: Sequence[str] | None
) -> tuple[Modality, ...]:
    ordered = sorted(available, key=lambda modality: modality.slot)
    if names is None:
        return tuple(ordered)
    known = [modality.name for modality in ordered]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"--modality {', '.join(unknown)}: {dataset} has {', '.join(known)}")
    return tuple(modality for modality in ordered if modality.name in names)
