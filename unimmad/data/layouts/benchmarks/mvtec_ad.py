"""MVTec-AD as its authors publish it: fifteen class folders in the layout that bears its name (see ``mvtec``).

Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unimmad.data.index import Modality
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.own.mvtec import read_class
from unimmad.data.layouts.scan import Notices, read_classes, visible_folders
from unimmad.data.modality import ModalityChoice

CLASSES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)


class MVTecADLayout:
    """RGB in every class: the gray photographs of grid, screw and zipper count as RGB, too."""

    info = LayoutInfo(
        name="mvtec_ad",
        title="MVTec-AD",
        field="industry",
        classes=CLASSES,
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Bergmann et al., CVPR 2019",
    )

    def recognises(self, root: Path) -> bool:
        """Half of the classes and no other: a few class names alone may be somebody's own."""
        found = [folder.name for folder in visible_folders(root) if (folder / "ground_truth").is_dir()]
        return set(found) <= set(self.info.classes) and 2 * len(found) >= len(self.info.classes)

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        return [ReadSet(read_classes(root, notices, partial(read_class, modality="rgb", notices=notices)))]
