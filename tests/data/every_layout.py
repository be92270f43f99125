"""A small copy of every layout's folders, by the layout's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data.disk_sets import (
    make_bmad,
    make_bmad_by_kind,
    make_eyecandies,
    make_hyper_kvasir,
    make_manifest,
    make_mmad_index,
    make_mulsen,
    make_multimodal,
    make_mvtec,
    make_mvtec_3d,
    make_visa,
)
from data.industrial_sets import (
    make_btad,
    make_kolektor_sdd2,
    make_mpdd,
    make_mvtec_ad_2,
    make_mvtec_loco,
    make_real_iad,
    make_real_iad_d3,
)
from data.medical_sets import make_medical

from unimmad.data.layouts.benchmarks.mvtec_ad import CLASSES as MVTEC_CLASSES
from unimmad.data.modality import ModalityChoice, parse_modality


def make_mvtec_ad(root: Path) -> Path:
    """Eight of its fifteen classes."""
    for name in MVTEC_CLASSES[:8]:
        make_mvtec(root, name)
    return root


COPIES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "mvtec_ad": (make_mvtec_ad, "mvtec_anomaly_detection"),
    "visa": (make_visa, "VisA"),
    "mvtec_3d": (make_mvtec_3d, "mvtec_3d_anomaly_detection"),
    "eyecandies": (make_eyecandies, "Eyecandies"),
    "mulsen_ad": (make_mulsen, "MulSen_AD"),
    "brats": (lambda root: make_bmad(root, sequences=("t1", "t2", "t1ce")), "BraTS2021_slice"),
    "liver_ct": (make_bmad_by_kind, "hist_DIY"),
    "retinal_oct": (make_bmad, "RESC"),
    "hyper_kvasir": (make_hyper_kvasir, "hyper-kvasir"),
    "real_iad": (make_real_iad, "Real-IAD"),
    "real_iad_d3": (make_real_iad_d3, "Real-IAD-D3"),
    "mvtec_ad_2": (make_mvtec_ad_2, "mvtec_ad_2"),
    "mvtec_loco": (make_mvtec_loco, "mvtec_loco_anomaly_detection"),
    "btad": (make_btad, "BTech_Dataset_transformed"),
    "mpdd": (make_mpdd, "MPDD"),
    "kolektor_sdd2": (make_kolektor_sdd2, "KolektorSDD2"),
    "mmad_index": (make_mmad_index, "mmad"),
    "mvtec": (make_mvtec, "my_bolts"),
    "multimodal": (make_multimodal, "my_bagels"),
    "manifest": (make_manifest, "my_cloths"),
    "medical": (make_medical, "my_scans"),
}
"""What makes the copy, and the name of its folder (by which some layouts are recognised)."""
OPTIONS = {"real_iad_d3": ("depth=depth:0.001",)}
"""What ``--modality`` has to say of a layout."""


def choices(layout: str) -> list[ModalityChoice]:
    """``OPTIONS`` as ``find_sets`` takes them."""
    return [parse_modality(text) for text in OPTIONS.get(layout, ())]


def make_copy(layout: str, root: Path) -> Path:
    """Make the layout's copy in a folder of ``root``; what to give as SOURCE."""
    make, folder = COPIES[layout]
    return make(root / folder)
