"""One slice as it is found, before its window is known: of a DICOM file or of a NIfTI volume."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from unimmad.data.layouts.medical.orientation import Turn
from unimmad.data.layouts.source_set import SourceFile

INSTALL = 'pip install "unimmad[medical]"'


class Slice(Protocol):
    """A picture in a scan."""

    @property
    def path(self) -> Path:
        """The file that holds it."""

    @property
    def series(self) -> str:
        """What it has its range of values in common with."""

    @property
    def turn(self) -> Turn:
        """What makes it upright."""

    @property
    def spacing(self) -> tuple[float, float]:
        """Millimetres between rows, and between columns, upright."""

    @property
    def window(self) -> tuple[float, float] | None:
        """Center and width, of the file itself."""

    @property
    def kind(self) -> str:
        """DICOM's modality (CT, MR, ...); empty where the file does not say it."""

    def image(self, limits: tuple[float, float] | None) -> SourceFile:
        """Its PNG, black and white at ``limits``; None: at its series' own."""
