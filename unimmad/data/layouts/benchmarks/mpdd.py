"""MPDD (metal parts defect detection) as its authors publish it: six class folders in the layout of MVTec-AD.

Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from unimmad.data.index import Modality
from unimmad.data.layouts.benchmarks.mvtec_ad import MVTecADLayout
from unimmad.data.layouts.layout import LayoutInfo


class MPDDLayout(MVTecADLayout):
    """RGB; painted and bare metal parts in changing positions and light."""

    info = LayoutInfo(
        name="mpdd",
        title="MPDD",
        field="industry",
        classes=("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"),
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Jezek et al., ICUMT 2021",
    )
