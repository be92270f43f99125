"""What the shards of a source will say of its modalities: found here without writing any, by the same rules.

Only what can tell something is decoded: depth, and training images of more than 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tqdm import tqdm

from unimmad.data.decode import decode
from unimmad.data.image_facts import ImageFacts, facts_of
from unimmad.data.image_type import is_eight_bits
from unimmad.data.index import Modality
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.reading.worker_pool import load_each
from unimmad.data.writing.findings import ModalityFindings


@dataclass(frozen=True)
class _Task:
    """One training sample and the modalities that are open."""

    sample: SourceSample
    modalities: tuple[Modality, ...]


def settled_set(found: SourceSet, workers: int = 0, show_progress: bool = True) -> SourceSet:
    """The dataset with modalities as its shards would have them: ranges, number types, what was not measured.

    Args:
        found: a source.
        workers: processes that read; 0: this one.
        show_progress: show a bar where stderr is a terminal.
    """
    entry = found.entry
    open_ = tuple(modality for modality in entry.modalities if modality.kind == "depth" or not modality.ranges)
    if found.published or not open_:
        return found
    findings = {modality.name: ModalityFindings(found, modality) for modality in open_}
    # In the writer's order, since the first depth image says what the others may be.
    trained = sorted((one for one in found.samples if one.split == "train"), key=lambda one: one.class_name)
    read = load_each(_facts, [_Task(sample, open_) for sample in trained], workers, preload=__name__)
    bar = tqdm(trained, desc=f"values of {found.name}", unit=" samples", disable=None if show_progress else True)
    for sample, facts in zip(bar, read, strict=True):
        try:
            for name, of_image in facts.items():
                findings[name].check(sample.images[name].name, of_image)
        except ValueError:  # measuring says it of every such image
            continue
        for name, of_image in facts.items():
            findings[name].add(sample.images[name].name, sample.split, of_image)
    settled = tuple(
        findings[modality.name].settled() if modality.name in findings else modality for modality in entry.modalities
    )
    return replace(found, entry=entry.model_copy(update={"modalities": settled}))


def _facts(task: _Task) -> dict[str, ImageFacts]:
    """Of a sample's images that can tell something; none of a sample that shards would not hold."""
    try:
        found = {
            modality.name: _of_image(task.sample.images[modality.name], modality)
            for modality in task.modalities
            if modality.name in task.sample.images
        }
    except (ValueError, OSError):  # measuring says it of every such image
        return {}
    return {name: facts for name, facts in found.items() if facts is not None}


def _of_image(file: SourceFile, modality: Modality) -> ImageFacts | None:
    data = file.read()
    if modality.kind != "depth" and is_eight_bits(data):
        return None
    return facts_of(decode(data, file.suffix, file.name), modality, file.name)[0]
