"""What values images hold: how much of their type's range, blank ones, and depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from unimmad.audit.facts import ImageFacts, SampleFacts
from unimmad.audit.files import images_by_modality
from unimmad.audit.findings import Finding, Severity, finding

LITTLE_SEEN = 1 / 8
"""Of the range that the model sees; what uses less is stored in fewer bits than its type has."""
OTHER_RANGE = 16.0
"""Times the usual largest value, or less than the usual one by as much: stored otherwise than the others."""
NOT_MEASURED = 0.05
"""Share of depth measured, below which an image is as good as empty."""
LEAST_SPAN_M, LARGEST_SPAN_M = 1e-3, 100.0
"""Metres between the nearest and farthest point that are plausible."""


def check_value_ranges(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Images that use little of their type's range, and modalities of which some images do."""
    for where, images in images_by_modality(samples).items():
        if images[0][1].kind == "depth":
            continue
        by_type: dict[str, list[ImageFacts]] = {}
        for _, image in images:
            if image.quantiles and not image.blank:
                by_type.setdefault(image.dtype, []).append(image)
        for dtype, of_type in by_type.items():
            little = np.dtype(dtype).kind in "iu" and max(image.seen_high for image in of_type) < LITTLE_SEEN
            if little and (dtype != "uint8" or len(by_type) == 1):  # beside wider ones they are dark pictures
                largest = max(image.quantiles[-1] for image in of_type)
                bits = max(1, int(largest)).bit_length()
                yield finding(
                    Severity.WARNING,
                    "values",
                    where,
                    f"no value is above {largest:g}: {bits} bits stored as {dtype}",
                    "say what the camera's values go up to (--modality NAME=gray:LOW:HIGH), or nothing, for unimmad "
                    "shards to find it; stretch a benchmark's images",
                    [image.file for image in of_type],
                )
            elif dtype != "uint8":  # a dark picture is a dark picture
                yield from _other_ranges(where, dtype, of_type)


def _other_ranges(where: str, dtype: str, images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Those whose largest value is of another order than the usual one."""
    tops = np.array([abs(image.quantiles[-1]) for image in images])
    usual = float(np.median(tops))
    odd = [
        image.file
        for image, top in zip(images, tops, strict=True)
        if not usual / OTHER_RANGE <= top <= usual * OTHER_RANGE
    ]
    if odd:
        yield finding(
            Severity.ERROR,
            "values",
            where,
            f"{len(odd)} of {len(images)} {dtype} images have another range than the others, whose largest "
            f"value is about {usual:g}",
            "bring all to one range",
            odd,
        )


def check_blank(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Images of one value, and values that are not numbers."""
    for where, images in images_by_modality(samples).items():
        blank = [image.file for _, image in images if image.blank]
        if blank:
            yield finding(
                Severity.WARNING,
                "blank",
                where,
                f"{len(blank)} of {len(images)} images hold one value only",
                "remove them, or find out why the sensor saw nothing",
                blank,
            )
        broken = [image.file for _, image in images if image.kind != "depth" and image.finite < 1]
        if broken:
            yield finding(
                Severity.ERROR,
                "values",
                where,
                f"{len(broken)} of {len(images)} images hold NaN or infinity",
                "mend them",
                broken,
            )


def check_depth(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Depth that is empty, or of a span that no scene has."""
    for where, images in images_by_modality(samples).items():
        depth = [image for _, image in images if image.span_m is not None and image.measured is not None]
        empty = [image.file for image in depth if (image.measured or 0) < NOT_MEASURED]
        if empty:
            yield finding(
                Severity.WARNING,
                "depth",
                where,
                f"{len(empty)} of {len(depth)} depth images have (nearly) no measured pixel",
                "remove them, or say which value means 'not measured' by --modality",
                empty,
            )
        spans = [image.span_m for image in depth if image.span_m]
        usual = float(np.median(spans)) if spans else LEAST_SPAN_M
        if not LEAST_SPAN_M <= usual <= LARGEST_SPAN_M:
            yield finding(
                Severity.WARNING,
                "depth",
                where,
                f"an image spans {usual:.3g} m from its nearest to its farthest pixel, at the median",
                "check the unit that --modality gives",
                [image.file for image in depth],
            )
