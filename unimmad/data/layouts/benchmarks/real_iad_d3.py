"""Real-IAD D3: RGB, pseudo-3D by photometric stereo, and depth from position maps or point clouds.

It is read as it is downloaded (``real_iad_d3_tables``), or in the folders that its authors' code reads
(``real_iad_d3_folders``). Of a position map the third channel is the depth, of a point cloud its z. Their unit was not
found, so that who reads the set must say it; the sensors differ in resolution, so that all is brought to the size of
RGB. Written from the authors' code and from others' that reads the files; it has not met the real files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimmad.data.index import Modality
from unimmad.data.layouts.benchmarks.point_cloud import CLOUD_SUFFIX, read_cloud_header
from unimmad.data.layouts.benchmarks.real_iad_d3_folders import is_d3_class, read_folders
from unimmad.data.layouts.benchmarks.real_iad_d3_tables import has_tables, read_tables
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import Notices, visible_folders
from unimmad.data.layouts.source_set import SourceSample
from unimmad.data.modality import ModalityChoice
from unimmad.serialization.text import listed

CLASSES = (
    *("audio_jack_socket", "common_mode_filter", "connector_housing-female", "crimp_st_cable_mount_box"),
    *("dc_power_connector", "ethernet_connector", "ferrite_bead", "fork_crimp_terminal", "fuse_holder"),
    *("headphone_jack_socket", "humidity_sensor", "knob-cap", "lattice_block_plug", "lego_pin_connector_plate"),
    *("lego_propeller", "limit-switch", "miniature_lifting_motor", "power_jack", "purple-clay-pot"),
    "telephone_spring_switch",
)


class RealIADD3Layout:
    """RGB, pseudo-3D as a picture, and depth in the unit that the user says."""

    info = LayoutInfo(
        name="real_iad_d3",
        title="Real-IAD D3",
        field="industry",
        classes=CLASSES,
        modalities=(
            Modality(name="rgb", slot=0, kind="rgb"),
            Modality(name="pseudo_3d", slot=1, kind="rgb"),
            Modality(name="depth", slot=2, kind="depth"),
        ),
        citation="Zhu et al., CVPR 2025",
    )

    def recognises(self, root: Path) -> bool:
        found = {folder.name for folder in visible_folders(root) if is_d3_class(folder)}
        return has_tables(root) or (bool(found) and found <= set(CLASSES))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        skipped = {choice.name for choice in choices.values() if choice.kind == "skip"}
        if has_tables(root):
            samples = read_tables(root, CLASSES, skipped, notices)
        else:
            samples = read_folders(root, [modality.name for modality in self.info.modalities], notices)
        if "depth" not in skipped:
            _check_depth(samples, "depth" in choices, notices)
        return [ReadSet(samples)]


def _check_depth(samples: Sequence[SourceSample], told: bool, notices: Notices) -> None:
    files = [sample.images["depth"].name for sample in samples if "depth" in sample.images]
    if files and not told:
        raise ValueError(
            f"{files[0]}: Real-IAD D3's description does not say the unit of its positions; say --modality "
            "depth=depth:mm, if a stored 1 is a millimetre (or um, m, or a number of these), or --modality depth=skip"
        )
    if unordered := [name for name in files if _is_unordered(Path(name))]:
        notices.add(
            f"{listed(unordered, 1)}: points without rows, of {len(unordered)} of {len(files)} samples: depth is "
            "seen along z, each cloud's own extent laid over its RGB picture, which fits only roughly"
        )


def _is_unordered(path: Path) -> bool:
    """Whether it is a cloud without rows."""
    try:
        return path.suffix.lower() == CLOUD_SUFFIX and not read_cloud_header(path).organised
    except ValueError:  # of a damaged cloud the writer tells, with all other files that can't be used
        return False
