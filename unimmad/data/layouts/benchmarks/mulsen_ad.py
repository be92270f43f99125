"""MulSen-AD as its authors publish it.

ROOT/CLASS/RGB/train/N.png                  ROOT/CLASS/Infrared/train/N.png
ROOT/CLASS/RGB/test/DEFECT/N.png            ROOT/CLASS/Infrared/test/DEFECT/N.png
ROOT/CLASS/RGB/GT/DEFECT/N.png              ROOT/CLASS/Infrared/GT/DEFECT/N.png
ROOT/CLASS/Pointcloud/...                   left out: it has no pixels

A defect has a mask from each sensor that shows it; a sample's mask is both, joined. Defects that only the point cloud
shows have none, and are left out. Infrared is resized to RGB where their sizes differ; the two are not registered to
each other any better than that. Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from pathlib import Path

from unimmad.data.index import Modality, Split
from unimmad.data.layouts.aligned import aligned_image, joined_mask
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import GOOD, Notices, check_folder, images_by_stem, new_sample, visible_folders
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

CLASSES = (
    *("button_cell", "capsule", "cotton", "cube", "flat_pad", "light", "nut", "piggy", "plastic_cylinder"),
    *("screen", "screw", "solar_panel", "spring_pad", "toothbrush", "zipper"),
)
SENSORS = {"rgb": "RGB", "infrared": "Infrared"}
"""The folder of each modality."""


class MulSenADLayout:
    """RGB and infrared; the point cloud is left out."""

    info = LayoutInfo(
        name="mulsen_ad",
        title="MulSen-AD",
        field="industry",
        classes=CLASSES,
        modalities=(Modality(name="rgb", slot=0, kind="rgb"), Modality(name="infrared", slot=1, kind="gray")),
        citation="Li et al., CVPR 2025",
    )

    def recognises(self, root: Path) -> bool:
        return any(_is_class(folder) for folder in visible_folders(root))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        check_folder(root)
        classes = [folder for folder in visible_folders(root) if _is_class(folder)]
        if not classes:
            raise ValueError(f"{root} has no class folder; wanted {root / 'CLASS' / 'RGB' / 'train'} and Infrared")
        samples = []
        for folder in classes:
            if (folder / "Pointcloud").is_dir():
                notices.add("point clouds left out: only RGB and infrared are read")
            samples += _read_part(folder, "train", GOOD, Path("train"), notices)
            for defect in visible_folders(folder / "RGB" / "test"):
                samples += _read_part(folder, "test", defect.name, Path("test") / defect.name, notices)
        return [ReadSet(samples)]


def _is_class(folder: Path) -> bool:
    return all((folder / sensor / "train").is_dir() for sensor in SENSORS.values())


def _read_part(class_folder: Path, split: Split, defect: str, part: Path, notices: Notices) -> list[SourceSample]:
    images = {name: images_by_stem(class_folder / sensor / part, notices) for name, sensor in SENSORS.items()}
    samples, unseen = [], 0
    for stem, rgb in images["rgb"].items():
        masks = _masks(class_folder, defect, stem)
        if defect != GOOD and not masks:
            unseen += 1
            continue
        files = {"rgb": SourceFile.of(rgb)}
        if stem in images["infrared"]:
            files["infrared"] = aligned_image(images["infrared"][stem], rgb)
        mask = joined_mask(masks, rgb) if masks else None
        samples.append(new_sample(class_folder.name, split, defect, stem, files, mask))
    if unseen:
        notices.add(f"{class_folder / 'RGB' / part}: {unseen} left out, no mask of RGB or infrared shows their defect")
    return samples


def _masks(class_folder: Path, defect: str, stem: str) -> list[Path]:
    if defect == GOOD:
        return []
    candidates = [class_folder / sensor / "GT" / defect / f"{stem}.png" for sensor in SENSORS.values()]
    return [path for path in candidates if path.is_file()]
