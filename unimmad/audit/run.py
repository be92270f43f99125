"""An audit from samples to findings: measured block by block, judged together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from unimmad.audit import measuring
from unimmad.audit.blocks import BLOCK, Block, Blocks
from unimmad.audit.checks import run_checks
from unimmad.audit.duplicates import DuplicatePair, check_duplicates, find_duplicates
from unimmad.audit.facts import Measured, SampleFacts
from unimmad.audit.findings import Finding, Severity, finding, worst_first
from unimmad.audit.measuring import Task, measure
from unimmad.audit.samples import AuditSample
from unimmad.audit.suspects import DIM, GRID, Suspect, check_suspects, rank_suspects
from unimmad.data.prepare import model_input
from unimmad.data.reading.worker_pool import load_each
from unimmad.data.writing.duplicates import HASH_VALUES

if TYPE_CHECKING:  # it brings timm in, which an audit without features need not wait for
    from unimmad.audit.patches import PatchDescriber

SAMPLES_PER_WORKER = 64
"""Fewer are not worth the start of a process."""
LEARNT_FROM = 16
"""Samples of a dataset that tell how much features vary."""
AT_ONCE = 32
"""Images that the network looks at together."""


@dataclass(frozen=True)
class Audited:
    """All that was found."""

    samples: tuple[SampleFacts, ...]
    findings: tuple[Finding, ...]
    """The worst first."""
    duplicates: tuple[DuplicatePair, ...]
    """The worst first."""
    suspects: dict[str, list[Suspect]]
    """By ``DATASET/CLASS``, the worst first; none of classes with few training images, and without features."""
    image_size: int
    """The model's, that small regions were measured at."""
    features: str
    """Which network's; ``none`` without one."""
    seconds: float
    kept: int
    """Samples that an interrupted audit had measured."""


@dataclass
class Progress:
    """How far it got, for whoever is interrupted."""

    done: int = 0
    kept: int = 0
    """Of these, samples that the next one need not measure again."""
    total: int = 0


@dataclass
class _Pool:
    """What was measured of all samples."""

    facts: list[SampleFacts] = field(default_factory=list)
    hashes: list[NDArray[np.uint8]] = field(default_factory=list)
    patches_of: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    """By class and modality, [P, E] of each training image."""

    def add(self, block: Block) -> None:
        self.facts += block.facts
        self.hashes.append(block.hashes_NK)
        patches = iter(block.patches_TPE)
        for sample in block.facts if len(block.patches_TPE) else ():
            for modality in sample.images if sample.is_reference else ():
                self.patches_of.setdefault((sample.class_name, modality), []).append(next(patches))


def default_workers(samples: int) -> int:
    """Processes that read and measure so many samples; one core needs none beside this process."""
    workers = min(len(os.sched_getaffinity(0)), samples // SAMPLES_PER_WORKER)
    return workers if workers > 1 else 0


def audit(
    samples: Sequence[AuditSample],
    *,
    image_size: int,
    describer: PatchDescriber | None = None,
    no_features: str = "",
    with_duplicates: bool = True,
    brief: bool = False,
    output: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    show_progress: bool = True,
) -> Audited:
    """Measure all samples and judge them.

    Args:
        samples: what to audit.
        image_size: the model's, which small regions are measured at.
        describer: finds suspicious training images; None: these are not looked for.
        no_features: why there is no ``describer``, where one was wanted.
        with_duplicates: look for samples that are there twice.
        brief: leave out what the checks of ``audit.brief`` don't look at; the findings of others then mean nothing.
        output: where finished blocks are kept until it is done, for the next one after an interruption; None: nowhere.
        workers: processes that read and measure; 0: this one.
        progress: takes how far it got.
        show_progress: show a bar where stderr is a terminal.

    Raises:
        ValueError: ``output`` can't be written to.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    progress.total = len(samples)
    settings: dict[str, str | int] = {"image_size": image_size}
    if describer is not None:
        _learn(describer, samples)
        settings |= {**describer.settings.to_json(), "learnt": describer.digest()}
    blocks = None if output is None else Blocks(output, settings)
    pool = _Pool()
    kept = 0
    with tqdm(total=len(samples), desc="audit", unit=" samples", disable=None if show_progress else True) as bar:
        for block, was_kept in _measured(samples, image_size, describer, blocks, workers, brief):
            pool.add(block)
            kept += len(block.facts) * was_kept
            progress.done = len(pool.facts)
            progress.kept = progress.done if blocks else 0
            bar.update(len(block.facts))
    hashes_NK = np.concatenate([np.empty((0, HASH_VALUES), np.uint8), *pool.hashes])
    duplicates = find_duplicates(pool.facts, hashes_NK) if with_duplicates else []
    suspects = rank_suspects(pool.facts, pool.patches_of)
    findings = [*run_checks(pool.facts, image_size), *check_duplicates(duplicates), *check_suspects(suspects)]
    if no_features:
        findings.append(finding(Severity.NOTE, "suspicious normals", "all classes", "not looked for", no_features))
    return Audited(
        samples=tuple(pool.facts),
        findings=tuple(worst_first(findings)),
        duplicates=tuple(duplicates),
        suspects=suspects,
        image_size=image_size,
        features="none" if describer is None else f"{describer.settings.backbone}, weights: {describer.origin}",
        seconds=time.perf_counter() - started,
        kept=kept,
    )


def _measured(
    samples: Sequence[AuditSample],
    image_size: int,
    describer: PatchDescriber | None,
    blocks: Blocks | None,
    workers: int,
    brief: bool,
) -> Iterator[tuple[Block, bool]]:
    """All blocks in order, and whether each was kept by an earlier audit."""
    parts = [samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK)]
    kept = [None if blocks is None else blocks.load(number, part) for number, part in enumerate(parts)]
    size = describer.settings.image_size if describer else image_size
    tasks = [
        Task(sample, image_size, size, describer is not None and sample.sample.split != "test", brief)
        for part, block in zip(parts, kept, strict=True)
        if block is None
        for sample in part
    ]
    measured = load_each(measure, tasks, workers, preload=measuring.__name__)
    for number, (part, block) in enumerate(zip(parts, kept, strict=True)):
        if block is not None:
            yield block, True
            continue
        block = _block(list(islice(measured, len(part))), describer)
        if blocks is not None:
            blocks.save(number, part, block)
        yield block, False


def _learn(describer: PatchDescriber, samples: Sequence[AuditSample]) -> None:
    """What varies in each modality of each dataset, from a few normal images that are spread over it."""
    of_kind: dict[tuple[str, str], list[AuditSample]] = {}
    for sample in samples:
        for modality in sample.files if sample.sample.split != "test" else ():
            of_kind.setdefault((sample.dataset, modality), []).append(sample)
    size = describer.settings.image_size
    for kind, normal in of_kind.items():
        chosen = {n * len(normal) // LEARNT_FROM for n in range(LEARNT_FROM)}
        found = [measure(Task(normal[place], size, size, True)) for place in sorted(chosen)]
        inputs = [
            model_input(one.pixels[kind[1]], one.facts.images[kind[1]].kind) for one in found if kind[1] in one.pixels
        ]
        if inputs:
            describer.learn(kind, torch.stack(inputs))


def _block(measured: Sequence[Measured], describer: PatchDescriber | None) -> Block:
    hashes = [one.hashes[name] for one in measured for name in one.facts.images]
    return Block(
        tuple(one.facts for one in measured),
        np.stack(hashes) if hashes else np.empty((0, HASH_VALUES), np.uint8),
        torch.empty(0, GRID**2, DIM, dtype=torch.float16) if describer is None else _patches(measured, describer),
    )


def _patches(measured: Sequence[Measured], describer: PatchDescriber) -> Tensor:
    """Of every image whose pixels are there, in their order: float16 [T, P, E]."""
    kinds: dict[tuple[str, str], list[int]] = {}
    inputs: list[Tensor] = []
    for one in measured:
        for name in one.pixels:
            kinds.setdefault((one.facts.dataset, name), []).append(len(inputs))
            inputs.append(model_input(one.pixels[name], one.facts.images[name].kind))
    patches_TPE = torch.empty(len(inputs), GRID**2, DIM, dtype=torch.float16)
    for kind, places in kinds.items():
        for start in range(0, len(places), AT_ONCE):
            part = places[start : start + AT_ONCE]
            patches_TPE[part] = describer.describe(kind, torch.stack([inputs[place] for place in part]))
    return patches_TPE
