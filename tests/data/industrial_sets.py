"""Small copies of the industrial benchmarks' folders, beside those of ``disk_sets``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from data.disk_sets import mask, positions_on_plane, rgb, save

POINT = np.zeros((12, 16), dtype=np.uint8)
POINT[11, 15] = 7


def make_mpdd(root: Path) -> Path:
    """Three of the six classes."""
    from data.disk_sets import make_mvtec

    for name in ("bracket_black", "metal_plate", "tubes"):
        make_mvtec(root, name)
    return root


def make_mvtec_ad_2(root: Path, class_name: str = "vial") -> Path:
    """Two normal images to train on, one to validate; a normal and a bad one public, one private."""
    folder = root / class_name
    for number, light in enumerate(("regular", "shift_1")):
        save(folder / "train" / "good" / f"000_{light}.png", rgb(number))
    save(folder / "validation" / "good" / "001_regular.png", rgb(2))
    save(folder / "test_public" / "good" / "002_regular.png", rgb(3))
    save(folder / "test_public" / "bad" / "003_overexposed.png", rgb(4))
    save(folder / "test_public" / "ground_truth" / "bad" / "003_overexposed_mask.png", mask())
    save(folder / "test_private" / "004_regular.png", rgb(5))
    save(folder / "test_private_mixed" / "004_mixed.png", rgb(6))
    return root


def make_mvtec_loco(root: Path, class_name: str = "pushpins") -> Path:
    """A logical anomaly of two masks, whose values tell its kind, and a structural one of one mask."""
    folder = root / class_name
    for part in ("train/good", "validation/good", "test/good", "test/logical_anomalies", "test/structural_anomalies"):
        save(folder / part / "000.png", rgb(len(part)))
    truth = folder / "ground_truth"
    save(truth / "logical_anomalies" / "000" / "000.png", mask() // 255 * 250)
    save(truth / "logical_anomalies" / "000" / "001.png", POINT)
    save(truth / "structural_anomalies" / "000" / "000.png", POINT)
    (folder / "defects_config.json").write_text(json.dumps([{"defect_name": "missing_pushpin", "pixel_value": 250}]))
    return root


def make_btad(root: Path) -> Path:
    """Class 01 with BMP images and PNG masks, 02 all PNG, 03 all BMP."""
    for name, image, marked in (("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")):
        save(root / name / "train" / "ok" / f"0000{image}", rgb(0))
        save(root / name / "test" / "ok" / f"0000{image}", rgb(1))
        save(root / name / "test" / "ko" / f"0001{image}", rgb(2))
        save(root / name / "ground_truth" / "ko" / f"0001{marked}", mask())
    return root


def make_kolektor_sdd2(root: Path) -> Path:
    """Two normal images and a defective one to train on, one of each to test."""
    for split, defective in (("train", (0, 0, 1)), ("test", (0, 1))):
        for number, bad in enumerate(defective):
            stem = f"{10000 + number if split == 'train' else 20000 + number}"
            save(root / split / f"{stem}.png", rgb(number))
            save(root / split / f"{stem}_GT.png", mask() * bad)
    return root


def make_real_iad(root: Path, class_name: str = "usb") -> Path:
    """Two views to train on; in test a normal object's, a scratched one's that shows it and one that does not."""
    records: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    parts = (
        ("train", "OK", "OK", "C1", False),
        ("train", "OK", "OK", "C2", False),
        ("test", "OK", "OK", "C3", False),
        ("test", "HS", "NG/HS", "C1", True),
        ("test", "HS", "NG/HS", "C2", False),
    )
    for split, anomaly, folder, view, shown in parts:
        stem = f"{folder}/S0001/{class_name}_0001_{folder.replace('/', '_')}_{view}_20231021"
        save(root / "realiad_1024" / class_name / f"{stem}.jpg", rgb(len(stem)))
        if shown:
            save(root / "realiad_1024" / class_name / f"{stem}.png", mask())
        record = {"category": class_name, "anomaly_class": anomaly, "image_path": f"{stem}.jpg"}
        records[split].append({**record, "mask_path": f"{stem}.png" if shown else None})
    table = root / "realiad_jsons" / f"{class_name}.json"
    table.parent.mkdir()
    table.write_text(json.dumps({"meta": {"normal_class": "OK", "prefix": f"{class_name}/"}, **records}))
    return root


def make_real_iad_d3(root: Path, class_name: str = "fuse_holder") -> Path:
    """RGB in two lights, pseudo-3D, positions in millimetres at another size; a normal and a scratched part to test."""
    for part in ("train/GOOD", "test/GOOD", "test/scratch"):
        folder = root / class_name / part
        for number in range(2):
            for light in ("L01", "L05"):
                save(folder / "rgb" / f"S{number:03d}" / f"S{number:03d}_{light}_RGB_0.jpg", rgb(number))
            save(folder / "ps" / f"S{number:03d}.jpg", rgb(10 + number, 24, 32))
            save(folder / "xyz" / f"S{number:03d}.tiff", 1000 * positions_on_plane())
            if part == "test/scratch":
                save(folder / "gt" / "rgb" / f"S{number:03d}.png", mask())
    return root


def write_cloud(path: Path, points_HW3: np.ndarray, encoding: str = "binary", organised: bool = True) -> None:
    """A PCD file of x, y, z and a colour between them, in rows or without."""
    height, width = points_HW3.shape[:2] if organised else (1, points_HW3[..., 0].size)
    records = np.zeros(height * width, np.dtype([("x", "<f4"), ("rgb", "<u4", (2,)), ("y", "<f4"), ("z", "<f8")]))
    for axis, name in enumerate("xyz"):
        records[name] = points_HW3[..., axis].ravel()
    lines = ("# .PCD v0.7", "VERSION 0.7", "FIELDS x rgb y z", "SIZE 4 4 4 8", "TYPE F U F F", "COUNT 1 2 1 1")
    shape = (f"WIDTH {width}", f"HEIGHT {height}", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {height * width}")
    header = "\n".join((*lines, *shape, f"DATA {encoding}\n")).encode()
    rows = "".join(f"{r['x']} {r['rgb'][0]} {r['rgb'][1]} {r['y']} {r['z']}\n" for r in records).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + (rows if encoding == "ascii" else records.tobytes()))


def make_real_iad_d3_tables(root: Path, class_name: str = "knob_cap") -> Path:
    """As it is downloaded: a normal part to train and to validate, a defective one left out of both, two to test.

    The third sample has a cloud in rows and no position map, the last a cloud without rows.
    """
    records: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    parts = (("train", "OK"), ("validation", "OK"), ("validation", "DK"), ("test", "OK"), ("test", "DK"))
    positions = 1000 * positions_on_plane()
    for number, (split, anomaly) in enumerate(parts):
        name = f"{'OK' if anomaly == 'OK' else 'NG'}/S{number:04d}/{class_name}_S{number:04d}"
        record = {"anomaly_class": anomaly, "image_path": f"{name}_L05_RGB.jpg", "ps_path": f"{name}_PS.jpg"}
        folder = root / "realiad_d3_raw" / class_name
        save(folder / record["image_path"], rgb(number))
        save(folder / record["ps_path"], rgb(10 + number, 24, 32))
        if number < 3:
            save(folder / f"{name}_XYZ_0.tiff", positions)
        else:
            write_cloud(folder / f"{name}_PCD_0.pcd", positions, organised=number == 3)
        if anomaly != "OK":
            save(folder / f"{name}_MASK.png", mask())
            record["mask_path"] = f"{name}_MASK.png"
        records[split].append({**record, "xyz_path": f"{name}_XYZ_0.tiff"})
    table = root / "realiad_d3_jsons" / f"{class_name}.json"
    table.parent.mkdir()
    table.write_text(json.dumps({"meta": {"prefix": f"{class_name}/"}, **records}))
    return root
