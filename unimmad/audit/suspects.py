"""Training images that may not be normal: those unlike all others of their class.

Every patch of an image is compared with patches of the class's other images. What is far from all of them is rare among
normal images: dirt, a wrong part, a bad photograph, or a defect that nobody saw.

Letters: N images, P patches of one, E features of a patch, M rows of the bank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimmad.audit.facts import SampleFacts
from unimmad.audit.findings import Finding, Severity, finding

GRID = 10
"""Patches a side; P is its square."""
DIM = 128
"""E: distances survive a random projection."""
FEWEST = 8
"""Images of a class, below which none can be called unusual."""
BANK_ROWS = 8192
"""Patches of a class that others are compared with, about."""
MOST_OF_AN_IMAGE = 24
"""Patches of one image in the bank."""
WORST_PATCHES = 5
"""An image is as unusual as the mean of so many of its patches."""
LEAST_SPREAD = 0.03
"""Of the logarithm: where all images are as far from the others as each other, small differences say nothing."""
UNUSUAL = 5.0
"""Deviations from the class's median, from which on an image is named."""


@dataclass(frozen=True)
class Suspect:
    """One training image of a sample, compared with the others of its class."""

    sample: SampleFacts
    modality: str
    deviations: float
    """How far its distance lies above the class's median, in robust standard deviations of the logarithm."""
    distances_hw: NDArray[np.float32]
    """Of each of its patches to the nearest one of another image, in units of the class's median."""


def rank_suspects(
    samples: Sequence[SampleFacts], patches_of: Mapping[tuple[str, str], Sequence[Tensor]]
) -> dict[str, list[Suspect]]:
    """By ``DATASET/CLASS``, its training samples by the modality in which each is most unusual, the worst first.

    Args:
        samples: of which those of the splits train and calibration are looked at, but for blank images.
        patches_of: by class and modality, the patches [P, E] of these samples that have it, in their order.
    """
    ranked: dict[str, list[Suspect]] = {}
    for (class_name, modality), patches in patches_of.items():
        having = [
            sample
            for sample in samples
            if sample.class_name == class_name and sample.is_reference and modality in sample.images
        ]
        seen = [n for n, sample in enumerate(having) if not sample.images[modality].blank]  # a check of their own
        if len(seen) >= FEWEST:
            of_modality = _of_modality([having[n] for n in seen], modality, torch.stack([patches[n] for n in seen]))
            ranked.setdefault(class_name, []).extend(of_modality)
    return {name: _worst_modality(found) for name, found in ranked.items()}


def _worst_modality(found: Sequence[Suspect]) -> list[Suspect]:
    """One a sample."""
    worst: dict[str, Suspect] = {}
    for suspect in sorted(found, key=lambda one: -one.deviations):
        worst.setdefault(suspect.sample.key, suspect)
    return list(worst.values())


def _of_modality(samples: Sequence[SampleFacts], modality: str, patches_NPE: Tensor) -> Iterator[Suspect]:
    distances_NP = leave_one_out(patches_NPE)
    median = float(distances_NP.median()) or 1.0
    relative_NP = (distances_NP / median).numpy()
    scores_N = np.sort(relative_NP, axis=1)[:, -WORST_PATCHES:].mean(axis=1)
    logs_N = np.log(np.maximum(scores_N, 1e-6))
    middle = float(np.median(logs_N))
    spread = max(1.4826 * float(np.median(np.abs(logs_N - middle))), LEAST_SPREAD)
    for sample, value, distances_P in zip(samples, logs_N.tolist(), relative_NP, strict=True):
        yield Suspect(sample, modality, (value - middle) / spread, distances_P.reshape(GRID, GRID))


@torch.inference_mode()
def leave_one_out(patches_NPE: Tensor) -> Tensor:
    """The distance of every patch to the nearest one, of a random choice, of another image: float32 [N, P].

    Args:
        patches_NPE: of two images or more.
    """
    images, patches = patches_NPE.shape[:2]
    each = max(1, min(MOST_OF_AN_IMAGE, patches, math.ceil(BANK_ROWS / images)))
    generator = torch.Generator().manual_seed(0)
    places_NK = torch.stack([torch.randperm(patches, generator=generator)[:each] for _ in range(images)])
    bank_ME = patches_NPE[torch.arange(images)[:, None], places_NK].flatten(0, 1).float()
    squares_M = bank_ME.square().sum(1)
    # Once: between small tensors that stay, the C library takes new memory for large ones, image by image.
    products_PM, distances_NP = torch.empty(patches, len(bank_ME)), torch.empty(images, patches)
    for number, patches_PE in enumerate(patches_NPE):
        queries_PE = patches_PE.float()
        torch.addmm(squares_M, queries_PE, bank_ME.T, alpha=-2, out=products_PM)
        products_PM[:, number * each : (number + 1) * each] = torch.inf  # its own
        nearest_PE = bank_ME[products_PM.argmin(1)]  # the difference itself, since the products are rounded
        distances_NP[number] = (queries_PE - nearest_PE).square().sum(1).sqrt()
    return distances_NP


def check_suspects(ranked: Mapping[str, Sequence[Suspect]]) -> Iterator[Finding]:
    """Names the images that stand out; all are ranked on the page."""
    for class_name, suspects in ranked.items():
        unusual = [suspect for suspect in suspects if suspect.deviations >= UNUSUAL]
        if unusual:
            yield finding(
                Severity.WARNING,
                "suspicious normals",
                class_name,
                f"{len(unusual)} of {len(suspects)} training images are unlike all others",
                "look at them: a defect in training teaches that it is normal",
                [suspect.sample.images[suspect.modality].file for suspect in unusual],
            )
