"""All checks of facts, one after the other. Each looks at all samples and says what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unimmad.audit.counts import check_counts, check_unreadable
from unimmad.audit.facts import SampleFacts
from unimmad.audit.files import check_colours, check_exif, check_label_against
from unimmad.audit.findings import Check, Finding
from unimmad.audit.geometry import check_alignment, check_shapes
from unimmad.audit.mask_checks import check_masks
from unimmad.audit.values import check_blank, check_depth, check_value_ranges


def checks(image_size: int) -> tuple[Check, ...]:
    """Those that need no more than facts; ``image_size`` is the model's."""
    return (
        check_unreadable,
        check_counts,
        check_label_against,
        check_value_ranges,
        check_blank,
        check_depth,
        check_colours,
        check_exif,
        lambda samples: check_shapes(samples, image_size),
        lambda samples: check_masks(samples, image_size),
        check_alignment,
    )


def run_checks(samples: Sequence[SampleFacts], image_size: int) -> Iterator[Finding]:
    """What all of them find."""
    for check in checks(image_size):
        yield from check(samples)
