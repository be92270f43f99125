"""What computes maps and scores: a checkpoint's model in PyTorch, or an exported file in ONNX Runtime.

Letters: B samples, M modalities of a sample, T tokens (sample, modality), C = 3 channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimmad.config import EvaluationSettings, Precision, TileSettings
from unimmad.data.views import STRETCHED, Geometry
from unimmad.evaluation.geometry import settings_with_tiles, tiles_of
from unimmad.evaluation.scoring import BatchScores, chosen_precision, score_images, scoring_form
from unimmad.inference.export.metadata import IMAGES_INPUT, MAPS_OUTPUT, SCORES_OUTPUT, ExportMetadata
from unimmad.inference.reading import PreparedSample, normalised_images
from unimmad.methods.added_class import WithAddedClasses
from unimmad.model.method import Method
from unimmad.serialization.text import one_line

CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"


class Engine(Protocol):
    """Scores samples at its own image size."""

    @property
    def image_size(self) -> int: ...

    @property
    def precision(self) -> Precision:
        """What it computes in."""

    @property
    def settings(self) -> EvaluationSettings:
        """What turns maps into scores."""

    @property
    def geometry(self) -> Geometry:
        """By which views images are scored."""

    @property
    def looks_at_class(self) -> bool:
        """Whether a sample's scores are others where its class is known."""

    @property
    def misses_class(self) -> bool:
        """Whether they were others if it could be told a sample's class, which it can't."""

    def check(self, sample: PreparedSample) -> None:
        """
        Raises:
            ValueError: the sample's modalities are not among those that can be scored.
        """

    def score(self, samples: Sequence[PreparedSample]) -> tuple[Tensor, Tensor]:
        """Blurred maps [B, H, W] and image scores [B], float32 on the CPU, of samples that passed ``check``.

        Of whole pictures: what is padding, and what is not looked at, is for ``maps_and_scores``.
        """

    def score_with_parts(self, samples: Sequence[PreparedSample]) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        """The same, and of each sample what each modality adds to its map, [M, H, W]; None where it can't be said."""


class ModelEngine:
    """The local form of the model, brought into its inference form; computes as evaluation does."""

    def __init__(
        self,
        model: Method,
        settings: EvaluationSettings,
        device: torch.device,
        precision: Precision | None = None,
        geometry: Geometry = STRETCHED,
    ) -> None:
        """``precision``: as for ``chosen_precision``; ``geometry``: the views that images are to be scored by."""
        # A handful of images would wait minutes for code that pays off over thousands.
        self.model = scoring_form(model, settings.model_copy(update={"compile": False}), device)
        self.settings = settings
        self.geometry = geometry
        self.device = device
        self._precision = chosen_precision(precision, device)

    @property
    def image_size(self) -> int:
        return self.model.image_size

    @property
    def precision(self) -> Precision:
        return self._precision

    @property
    def looks_at_class(self) -> bool:
        return self.model.looks_at_class

    @property
    def misses_class(self) -> bool:
        return False

    def check(self, sample: PreparedSample) -> None:
        highest = max(modality.slot for modality in sample.modalities)
        available = self.model.modality_slots
        if highest >= available:
            raise ValueError(
                f"{sample.name}: an image of slot {highest}; the model has slots 0 to {available - 1} only"
            )
        known = self.model.added if isinstance(self.model, WithAddedClasses) else {}
        bank = known.get(sample.match.class_name or "")
        if bank is not None and bank.slots:  # without any it is about to be filled
            unknown = [modality.name for modality in sample.modalities if modality.slot not in bank.slots]
            if unknown:
                raise ValueError(f"{sample.name}: class {bank.class_name} was added without {', '.join(unknown)}")

    def score(self, samples: Sequence[PreparedSample]) -> tuple[Tensor, Tensor]:
        return self.score_tokens(*_tokens_of(samples))

    def score_with_parts(self, samples: Sequence[PreparedSample]) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        images_TCHW, counts, slots_T, classes = _tokens_of(samples)
        scored = self._scored(images_TCHW, counts, slots_T, classes, with_parts=True)
        parts = None if scored.parts_THW is None else list(scored.parts_THW.cpu().split(counts))
        return scored.maps_BHW.cpu(), scored.scores_B.cpu(), parts

    def score_tokens(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same for normalised images, listed sample by sample, of these classes where they are known."""
        scored = self._scored(images_TCHW, tokens_per_sample, slot_of_token_T, classes)
        return scored.maps_BHW.cpu(), scored.scores_B.cpu()

    def _scored(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None,
        with_parts: bool = False,
    ) -> BatchScores:
        return score_images(
            self.model,
            images_TCHW.to(self.device),
            tokens_per_sample,
            slot_of_token_T.to(self.device),
            self.settings,
            self._precision,
            classes,
            with_parts,
        )


def _tokens_of(samples: Sequence[PreparedSample]) -> tuple[Tensor, list[int], Tensor, list[str | None]]:
    """What ``ModelEngine.score_tokens`` takes of them."""
    slots = [modality.slot for sample in samples for modality in sample.modalities]
    return (
        torch.cat([normalised(sample) for sample in samples]),
        [len(sample.modalities) for sample in samples],
        torch.tensor(slots),
        [sample.match.class_name for sample in samples],
    )


def normalised(sample: PreparedSample) -> Tensor:
    """A sample's images with the mean and standard deviation that the model was trained with: [M, C, H, W]."""
    return normalised_images(sample.images_MCHW, sample.modalities)


class OnnxEngine:
    """An exported file; normalisation, map, blur and score are inside it."""

    def __init__(self, file: Path, device: str | None = None, tiles: TileSettings | None = None) -> None:
        """
        Args:
            file: written by ``unimmad export --format onnx``.
            device: as for ``onnx_providers``.
            tiles: to score by, in place of the file's.

        Raises:
            ValueError: no such file, ONNX Runtime is not installed, the file can't be run or says not what it needs, or
                the device can't be used.
        """
        if not file.is_file():
            raise ValueError(f"{file} does not exist; make it with unimmad export")
        runtime = _onnx_runtime()
        providers = onnx_providers(device, runtime.get_available_providers())
        try:
            self._session = runtime.InferenceSession(file, providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise _not_run(file, error) from None
        if device is not None and len(providers) > 1 and CUDA_PROVIDER not in self._session.get_providers():
            raise ValueError(f"device {device} can't be used here: ONNX Runtime's own message above says why")
        self.metadata = ExportMetadata.from_strings(self._session.get_modelmeta().custom_metadata_map, str(file))
        self._check_interface(file)
        self.settings = settings_with_tiles(self.metadata.evaluation, self.metadata.aspect, tiles)
        self.file = file
        with file.open("rb") as stream:
            self.file_digest = hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def image_size(self) -> int:
        return self.metadata.image_size

    @property
    def precision(self) -> Precision:
        return self.metadata.precision

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.metadata.aspect, tiles_of(self.settings.tiles))

    @property
    def looks_at_class(self) -> bool:
        """An exported file is told nothing but images."""
        return False

    @property
    def misses_class(self) -> bool:
        return self.metadata.misses_class

    def _check_interface(self, file: Path) -> None:
        """Images are made as the metadata say: the graph must take them, and give what is asked for."""
        size = self.metadata.image_size
        expected = {IMAGES_INPUT: [len(self.metadata.modalities), 3, size, size]}
        inputs = {given.name: list(given.shape[1:]) for given in self._session.get_inputs()}
        outputs = {given.name for given in self._session.get_outputs()}
        if inputs != expected or not {MAPS_OUTPUT, SCORES_OUTPUT} <= outputs:
            raise ValueError(
                f"{file}: it takes {one_line(inputs)} and gives {one_line(sorted(outputs))}, which is not what its "
                "metadata say; make it again with unimmad export"
            )

    def check(self, sample: PreparedSample) -> None:
        wanted = [modality.name for modality in self.metadata.modalities]
        if set(sample.modality_names) != set(wanted):
            raise ValueError(
                f"{sample.name} has the modalities {', '.join(sample.modality_names)}; the exported file takes "
                f"{', '.join(wanted)}, all of them; export another, or use the checkpoint"
            )

    def score(self, samples: Sequence[PreparedSample]) -> tuple[Tensor, Tensor]:
        wanted = [modality.name for modality in self.metadata.modalities]
        images_BMCHW = torch.stack([_in_order(sample, wanted) for sample in samples]).numpy()
        try:
            outputs = self._session.run([MAPS_OUTPUT, SCORES_OUTPUT], {IMAGES_INPUT: images_BMCHW})
        except Exception as error:
            raise _not_run(self.file, error) from None
        maps_BHW, scores_B = map(torch.from_numpy, self._checked(outputs, len(samples)))
        return maps_BHW, scores_B

    def score_with_parts(self, samples: Sequence[PreparedSample]) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        return *self.score(samples), None

    def _checked(self, outputs: Sequence[Any], count: int) -> Sequence[NDArray[np.float32]]:
        """What a graph says of its outputs before it runs need not be so."""
        size = self.metadata.image_size
        for output, shape in zip(outputs, [(count, size, size), (count,)], strict=True):
            if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape != shape:
                found = f"{output.dtype} {output.shape}" if isinstance(output, np.ndarray) else type(output).__name__
                raise ValueError(f"{self.file} gave {found} for float32 {shape}; make it again with unimmad export")
        return outputs


def _not_run(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} can't be run by ONNX Runtime: {one_line(' '.join(str(error).split()))}")


def onnx_providers(device: str | None, available: Sequence[str]) -> list[tuple[str, dict[str, int]]]:
    """ONNX Runtime's execution providers, the one to use first: CUDA, then the CPU for what CUDA can't do; no others.

    Args:
        device: ``cuda`` or ``cuda:1`` wants CUDA, ``cpu`` leaves it out; None takes it where it is installed.
        available: the names of those installed.

    Raises:
        ValueError: another device, or CUDA is asked for and not installed.
    """
    kind, _, index = (device or "").partition(":")
    if kind not in ("", "cpu", "cuda") or not (index or "0").isdecimal():
        raise ValueError(f"device {device} can't be used for an exported file: cpu, cuda, cuda:1")
    if kind == "cuda" and CUDA_PROVIDER not in available:
        raise ValueError(
            f"device {device} can't be used here: this ONNX Runtime has no {CUDA_PROVIDER} (onnxruntime-gpu has it)"
        )
    cpu: tuple[str, dict[str, int]] = (CPU_PROVIDER, {})
    if kind == "cpu" or CUDA_PROVIDER not in available:
        return [cpu]
    # TF32 is its default, and the precision is fp32.
    return [(CUDA_PROVIDER, {"device_id": int(index or 0), "use_tf32": 0}), cpu]


def _in_order(sample: PreparedSample, names: Sequence[str]) -> Tensor:
    return sample.images_MCHW[[sample.modality_names.index(name) for name in names]]


def _onnx_runtime() -> Any:
    try:
        return import_module("onnxruntime")
    except ImportError:
        raise ValueError('an exported file needs ONNX Runtime: pip install "unimmad[export]"') from None
