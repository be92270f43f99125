"""All layouts, by name."""

from __future__ import annotations

from unimmad.data.layouts.benchmarks.bmad import BMAD_LAYOUTS
from unimmad.data.layouts.benchmarks.btad import BTADLayout
from unimmad.data.layouts.benchmarks.eyecandies import EyecandiesLayout
from unimmad.data.layouts.benchmarks.hyper_kvasir import HyperKvasirLayout
from unimmad.data.layouts.benchmarks.kolektor_sdd2 import KolektorSDD2Layout
from unimmad.data.layouts.benchmarks.mmad_index import MMADIndexLayout
from unimmad.data.layouts.benchmarks.mpdd import MPDDLayout
from unimmad.data.layouts.benchmarks.mulsen_ad import MulSenADLayout
from unimmad.data.layouts.benchmarks.mvtec_3d import MVTec3DLayout
from unimmad.data.layouts.benchmarks.mvtec_ad import MVTecADLayout
from unimmad.data.layouts.benchmarks.mvtec_ad_2 import MVTecAD2Layout
from unimmad.data.layouts.benchmarks.mvtec_loco import MVTecLOCOLayout
from unimmad.data.layouts.benchmarks.real_iad import RealIADLayout
from unimmad.data.layouts.benchmarks.real_iad_d3 import RealIADD3Layout
from unimmad.data.layouts.benchmarks.visa import VisALayout
from unimmad.data.layouts.layout import Layout
from unimmad.data.layouts.medical.layout import MedicalLayout
from unimmad.data.layouts.own.manifest import ManifestLayout
from unimmad.data.layouts.own.multimodal import MultimodalLayout
from unimmad.data.layouts.own.mvtec import MVTecLayout

_ALL: tuple[Layout, ...] = (
    MVTecADLayout(),
    VisALayout(),
    MVTec3DLayout(),
    EyecandiesLayout(),
    MulSenADLayout(),
    *BMAD_LAYOUTS,
    HyperKvasirLayout(),
    RealIADLayout(),
    RealIADD3Layout(),
    MVTecAD2Layout(),
    MVTecLOCOLayout(),
    BTADLayout(),
    MPDDLayout(),
    KolektorSDD2Layout(),
    MMADIndexLayout(),
    MVTecLayout(),
    MultimodalLayout(),
    ManifestLayout(),
    MedicalLayout(),
)
LAYOUTS: dict[str, Layout] = {layout.info.name: layout for layout in _ALL}
"""By the name that ``--layout`` takes: the benchmarks, their common index, one's own images."""


def layout_table() -> str:
    """A text table of all layouts: name, classes, modalities, domain, citation."""
    rows = [("layout", "classes", "modalities", "domain", "citation")]
    for layout in LAYOUTS.values():
        info = layout.info
        modalities = ", ".join(modality.name for modality in info.modalities) or "any"
        rows.append((info.name, str(len(info.classes) or "any"), modalities, info.field, info.citation or info.title))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    benchmarks = [layout.info for layout in LAYOUTS.values() if layout.info.classes]
    classes = sum(len(info.classes) for info in benchmarks)
    return "\n".join([*lines, f"{classes} classes in {len(benchmarks)} benchmark datasets"])
