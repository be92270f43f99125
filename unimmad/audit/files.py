"""How images are stored: colours, EXIF, and whether the way of storing gives the label away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from unimmad.audit.facts import ImageFacts, SampleFacts
from unimmad.audit.findings import Finding, Severity, by_class, finding
from unimmad.data.decoded import PLANES_READ

UPRIGHT = 1
FEWEST = 3
"""Samples of each label, from which on a coincidence is told."""
SAME_FOR = 0.9
"""Share of the test samples whose label the way of storing tells, from which on it is told, where guessing the more
frequent label is right for less than ``GUESSED``."""
GUESSED = 0.75


def images_by_modality(samples: Sequence[SampleFacts]) -> dict[str, list[tuple[SampleFacts, ImageFacts]]]:
    """By ``DATASET, MODALITY``."""
    found: dict[str, list[tuple[SampleFacts, ImageFacts]]] = {}
    for sample in samples:
        for name, image in sample.images.items():
            found.setdefault(f"{sample.dataset}, {name}", []).append((sample, image))
    return found


def check_exif(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Images that EXIF turns, and those that tell where they were taken."""
    for where, images in images_by_modality(samples).items():
        turned = [image for _, image in images if image.orientation != UPRIGHT]
        if turned:
            kinds = ", ".join(map(str, sorted({image.orientation for image in turned})))
            some = len(turned) < len(images)
            yield finding(
                Severity.WARNING if some else Severity.NOTE,
                "EXIF",
                where,
                f"{len(turned)} of {len(images)} images are stored turned (EXIF orientation {kinds})",
                "store all upright, pixels and masks, so that every program sees the same picture",
                [image.file for image in turned],
            )
        placed = [image.file for _, image in images if image.has_place]
        if placed:
            yield finding(
                Severity.NOTE,
                "EXIF",
                where,
                f"{len(placed)} of {len(images)} images say where they were taken (GPS), which shards hold as well",
                "remove it where that should not get around",
                placed,
            )


def check_colours(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Modalities whose images are stored in several ways, and colour that is none."""
    for where, images in images_by_modality(samples).items():
        modes = Counter(f"{image.channels} x {image.dtype}" for _, image in images)
        if len(modes) > 1:
            (usual, _), *others = modes.most_common()
            odd = [image.file for _, image in images if f"{image.channels} x {image.dtype}" != usual]
            yield finding(
                Severity.WARNING,
                "colours",
                where,
                f"most images are {usual} (channels x type), others {', '.join(f'{n} {name}' for name, n in others)}",
                "store all in one way: values of different types may not mean the same",
                odd,
            )
        transparent = [image.file for _, image in images if image.mode in ("RGBA", "LA", "PA", "CMYK")]
        if transparent:
            yield finding(
                Severity.NOTE,
                "colours",
                where,
                f"{len(transparent)} of {len(images)} images are transparent or for print (RGBA, LA, PA, CMYK)",
                "the model sees neither: look whether they look right without, and convert them to RGB",
                transparent,
            )
        planes = [image.file for _, image in images if image.planes]
        if planes:
            yield finding(
                Severity.WARNING,
                "colours",
                where,
                f"{len(planes)} of {len(images)} images store their channels as planes, {PLANES_READ}",
                "look whether they are colours: some writers store a stack of three or four images so",
                planes,
            )
        if images[0][1].kind == "rgb":
            yield from _grey_among_colour(where, [image for _, image in images])


def _grey_among_colour(where: str, images: Sequence[ImageFacts]) -> Iterator[Finding]:
    grey = [image.file for image in images if not image.colour]
    if len(grey) == len(images):
        yield finding(Severity.NOTE, "colours", where, "all images are grey, though the modality is rgb")
    elif grey:
        odd, what = (
            (grey, "grey")
            if 2 * len(grey) <= len(images)
            else (
                [image.file for image in images if image.colour],
                "in colour",
            )
        )
        yield finding(
            Severity.WARNING,
            "colours",
            where,
            f"{len(odd)} of {len(images)} images are {what}, unlike the others",
            "take all with one setting of the camera, or make them a class of their own",
            odd,
        )


STORED: dict[str, Callable[[SampleFacts], str]] = {
    "the set of sensors": lambda sample: " + ".join(sample.images),
    "the file type": lambda sample: "/".join(image.file_type for image in sample.images.values()),
    "the image size": lambda sample: "/".join(f"{image.width}x{image.height}" for image in sample.images.values()),
    "the number type": lambda sample: "/".join(f"{image.channels} {image.dtype}" for image in sample.images.values()),
}
"""Ways in which samples may differ that have nothing to do with what they show."""


def check_label_against(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Test sets whose labels can be told without looking at a picture."""
    for class_name, of_class in by_class(samples).items():
        test = [sample for sample in of_class if sample.split == "test" and sample.images]
        normal = sum(not sample.anomalous for sample in test)
        if min(normal, len(test) - normal) < FEWEST:
            continue
        told = (found for what, way in STORED.items() for found in _label_told_by(class_name, test, what, way))
        yield from islice(told, 1)  # where one way differs others often do


def _label_told_by(
    class_name: str, test: Sequence[SampleFacts], what: str, way: Callable[[SampleFacts], str]
) -> Iterator[Finding]:
    labels: dict[str, Counter[bool]] = {}
    for sample in test:
        labels.setdefault(way(sample), Counter())[sample.anomalous] += 1
    if not 1 < len(labels) <= len(test) // FEWEST:
        return
    told = sum(max(of_way.values()) for of_way in labels.values()) / len(test)
    guessed = max(sum(of_way[label] for of_way in labels.values()) for label in (True, False)) / len(test)
    if told < SAME_FOR or guessed >= GUESSED:
        return
    ways = "; ".join(f"{name}: {of[False]} normal, {of[True]} anomalous" for name, of in labels.items())
    yield finding(
        Severity.ERROR if told == 1 else Severity.WARNING,
        "label",
        class_name,
        f"{what} tells the label of {told:.0%} of the test images ({ways})",
        "scores may follow it and not the defects: take normal and anomalous images in the same way",
        [sample.name for sample in test],
    )
