"""Small datasets on disk, in every layout: real files in the published folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

SIZE = (12, 16)
"""Height and width of the small pictures."""


def save(path: Path, array: np.ndarray) -> Path:
    """Write an array as the type that the path's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tiff":
        tifffile.imwrite(path, array, photometric="rgb")
    else:
        Image.fromarray(array).save(path)
    return path


def rgb(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def gray(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return rgb(seed, height, width)[:, :, 0]


def mask(height: int = 12, width: int = 16) -> np.ndarray:
    marked = np.zeros((height, width), dtype=np.uint8)
    marked[3:6, 4:9] = 255
    return marked


def make_mvtec(root: Path, class_name: str = "bolt", suffix: str = ".png") -> Path:
    """Three normal images to train on, one normal and two bent ones to test."""
    folder = root / class_name
    for number in range(3):
        save(folder / "train" / "good" / f"{number:03d}{suffix}", rgb(number))
    save(folder / "test" / "good" / f"000{suffix}", rgb(10))
    for number in range(2):
        save(folder / "test" / "bent" / f"{number:03d}{suffix}", rgb(20 + number))
        save(folder / "ground_truth" / "bent" / f"{number:03d}_mask.png", mask())
    return root


def make_multimodal(root: Path, class_name: str = "bagel") -> Path:
    """RGB and 16-bit depth: two normal samples to train on, one normal and one cut one to test."""
    for part, count, seed in (("train/good", 2, 0), ("test/good", 1, 10), ("test/cut", 1, 20)):
        folder = root / class_name / part
        for number in range(count):
            save(folder / "rgb" / f"{number:03d}.png", rgb(seed + number))
            depth = np.full((12, 16), 40000, dtype=np.uint16)
            depth[0] = 0
            depth[6:] = 50000
            save(folder / "depth" / f"{number:03d}.png", depth)
            if part == "test/cut":
                save(folder / "gt" / f"{number:03d}.png", mask())
    return root


def make_visa(root: Path, classes: Sequence[str] = ("candle", "pcb1")) -> Path:
    """VisA: two normal JPEGs to train on, a normal and an anomalous one to test, in the table of split_csv."""
    lines = ["object,split,label,image,mask"]
    for name in classes:
        for number, split in enumerate(("train", "train", "test")):
            path = f"{name}/Data/Images/Normal/{number:04d}.JPG"
            save(root / path, rgb(number))
            lines.append(f"{name},{split},normal,{path},")
        path, mask_path = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        save(root / path, rgb(9))
        save(root / mask_path, mask() // 255)  # as published: classes counted from 1
        lines.append(f"{name},test,anomaly,{path},{mask_path}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def positions_on_plane(size: int = 48, height: float = 0.02) -> np.ndarray:
    """An object ``height`` metres above a tilted plane half a metre away, in its middle third; a measuring hole."""
    rows, columns = np.mgrid[:size, :size] / size
    depth = 0.5 + 0.1 * rows
    middle = slice(size // 3, 2 * size // 3)
    depth[middle, middle] -= height
    positions = np.stack([0.3 * (columns - 0.5), 0.3 * (rows - 0.5), depth], axis=2).astype(np.float32)
    positions[size // 2, size // 2] = 0
    return positions


def make_mvtec_3d(root: Path, class_name: str = "bagel") -> Path:
    """MVTec 3D-AD: one sample to train on, one to validate, a good and a holed one to test."""
    for part in ("train/good", "validation/good", "test/good", "test/hole"):
        folder = root / class_name / part
        save(folder / "rgb" / "000.png", rgb(0, 48, 48))
        save(folder / "xyz" / "000.tiff", positions_on_plane())
        if part.startswith("test"):
            save(folder / "gt" / "000.png", mask(48, 48) * (part == "test/hole"))
    (root / class_name / "calibration").mkdir()
    (root / class_name / "calibration" / "camera_parameters.json").write_text("{}")
    return root


def make_eyecandies(root: Path, class_name: str = "Lollipop") -> Path:
    """Eyecandies: two samples to train on, one to validate, a normal and a dented one public, one private."""
    for part, bad in (("train", "00"), ("val", "0"), ("test_public", "01"), ("test_private", "0")):
        folder = root / class_name / part / "data"
        for number, dented in enumerate(bad):
            stem = folder / f"{number:03d}"
            for light in (4, 5):
                save(Path(f"{stem}_image_{light}.png"), rgb(light))
            depth = np.full(SIZE, 65535, dtype=np.uint16)
            depth[3:9] = 0
            save(Path(f"{stem}_depth.png"), depth)
            Path(f"{stem}_info_depth.yaml").write_text("normalization:\n  max: 7.5\n  min: 2.5\n")
            if part != "test_private":
                save(Path(f"{stem}_mask.png"), mask() * int(dented))
                save(Path(f"{stem}_dents_mask.png"), mask() * int(dented))
                save(Path(f"{stem}_bumps_mask.png"), mask() * 0)
    return root


def make_mulsen(root: Path, class_name: str = "nut") -> Path:
    """MulSen-AD: infrared at half the size; a crack seen by both sensors, a hole by infrared, a bend by neither."""
    parts = ("train", "test/good", "test/crack", "test/hole", "test/bent")
    for part in parts:
        save(root / class_name / "RGB" / part / "0.png", rgb(0))
        save(root / class_name / "Infrared" / part / "0.png", gray(1, 6, 8))
        cloud = root / class_name / "Pointcloud" / part / "0.stl"
        cloud.parent.mkdir(parents=True)
        cloud.write_bytes(b"solid")
    small = np.zeros((6, 8), dtype=np.uint8)
    small[5, 7] = 255
    save(root / class_name / "RGB" / "GT" / "crack" / "0.png", mask())
    save(root / class_name / "Infrared" / "GT" / "crack" / "0.png", small)
    save(root / class_name / "Infrared" / "GT" / "hole" / "0.png", small)
    (root / class_name / "RGB" / "GT" / "crack" / "data.csv").write_text("object,RGB,Infrared,Pointcloud\n0,1,1,0\n")
    return root


def make_bmad(root: Path, valid: str = "valid", sequences: Sequence[str] = ()) -> Path:
    """BMAD: two slices to train on, a normal and an abnormal one each to validate and to test."""
    parts = {"train/good": 2, f"{valid}/good": 1, f"{valid}/Ungood": 1, "test/good": 1, "test/Ungood": 1}
    for part, count in parts.items():
        for number in range(count):
            for folder in ("img", *sequences):
                save(root / part / folder / f"{number:05d}_60.png", gray(number))
            if part.endswith("Ungood"):
                save(root / part / "label" / f"{number:05d}_60.png", mask())
    return root


def make_bmad_by_kind(root: Path) -> Path:
    """BMAD's liver archive: img and label above good and Ungood."""
    save(root / "train" / "good" / "a.png", gray(0))
    for label in ("good", "Ungood"):
        save(root / "test" / "img" / label / "a.png", gray(1))
        save(root / "test" / "label" / label / "a.png", mask() * (label == "Ungood"))
    return root


def make_hyper_kvasir(root: Path) -> Path:
    """Hyper-Kvasir: 22 normal images in three folders, two polyps with JPEG masks, a folder of other findings."""
    lower = root / "labeled-images" / "lower-gi-tract"
    for folder in ("anatomical-landmarks/cecum", "anatomical-landmarks/ileum", "quality-of-mucosal-views/bbps-2-3"):
        for number in range(7):
            save(lower / folder / f"{folder[-5:]}-{number}.jpg", rgb(number))
    save(lower / "anatomical-landmarks" / "ileum" / "cecum-0.jpg", rgb(0))  # one name in two folders
    save(lower / "pathological-findings" / "polyps" / "p0.jpg", rgb(0))
    for number in range(2):
        save(root / "segmented-images" / "images" / f"p{number}.jpg", rgb(number))
        save(root / "segmented-images" / "masks" / f"p{number}.jpg", np.repeat(mask()[:, :, None], 3, axis=2))
    return root


def make_mmad_index(root: Path) -> Path:
    """The released index over three sets: RGB + depth, four sequences, RGB with depth without foreground."""
    depth = np.stack([np.full(SIZE, 0.5), np.zeros(SIZE), np.ones(SIZE)], axis=2).astype(np.float32)
    depth[0, :, 2] = 0
    index: dict[str, dict[str, list[dict[str, object]]]] = {"train": {}, "test": {}}
    kinds = {
        "bagel_mvtec3d": ["rgb", "depth"],
        "brats_BratsAD1K": ["gray"] * 4,
        "Confetto_EyePre": ["rgb", "wofg_depth"],
    }
    for name, types in kinds.items():
        for split, anomaly in (("train", 0), ("test", 0), ("test", 1)):
            stem = f"{name}/{split}/{anomaly}"
            paths = []
            for place, kind in enumerate(types):
                paths.append(f"{stem}/{place}" + (".npy" if "depth" in kind else ".png"))
                small = gray(place, 6, 8) if place == 3 else rgb(place)
                save(root / paths[-1], depth if "depth" in kind else small)
            mask_path = f"{stem}/mask.png" if anomaly else ""
            if anomaly:
                save(root / mask_path, mask())
            index[split].setdefault(name, []).append(
                {
                    "img_path": paths,
                    "img_type": types,
                    "mask_path": mask_path,
                    "cls_name": name,
                    "specie_name": "hole" if anomaly else "good",
                    "anomaly": anomaly,
                }
            )
    (root / "meta.json").write_text(json.dumps(index))
    return root / "meta.json"


def make_manifest(root: Path, suffix: str = ".csv") -> Path:
    """One's own images in a table: three to train on, one to calibrate, a normal and a torn one to test."""
    header = ["class", "split", "defect", "image.rgb", "image.depth", "mask"]
    lines = []
    for number, split in enumerate(("train", "train", "train", "calibration", "test", "test")):
        save(root / "photos" / f"{number}.png", rgb(number))
        save(root / "depths" / f"{number}.npy", np.full(SIZE, 0.5, dtype=np.float32))
        torn = number == 5
        cells = ["cloth", split, "torn" if torn else "", f"photos/{number}.png", f"depths/{number}.npy"]
        lines.append([*cells, "torn.png" if torn else ""])
    save(root / "torn.png", mask())
    path = root / f"cloths{suffix}"
    if suffix == ".csv":
        path.write_text("\n".join(",".join(line) for line in [header, *lines]) + "\n")
    else:
        path.write_text("\n".join(json.dumps(dict(zip(header, line, strict=True))) for line in lines))
    return path
