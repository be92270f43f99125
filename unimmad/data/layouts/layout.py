"""What a layout is: one way in which datasets lie on disk, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unimmad.data.index import Modality
from unimmad.data.layouts.scan import Notices
from unimmad.data.layouts.source_set import SourceSample
from unimmad.data.modality import ModalityChoice

OWN_CALIBRATION_FRACTION = 0.1
"""Of one's own images; the benchmarks train on all that they publish for it."""


@dataclass(frozen=True)
class LayoutInfo:
    """A layout's entry in the table of ``unimmad shards --list``."""

    name: str
    """What ``--layout`` calls it; a benchmark's dataset is called so, too (recipes weigh datasets by name)."""
    title: str
    field: str = "unspecified"
    """industry, medicine, ..."""
    classes: tuple[str, ...] = ()
    """Of a benchmark, all of them; empty where any class may come."""
    modalities: tuple[Modality, ...] = ()
    """In slot order; empty where the files or the user tell."""
    citation: str = ""
    calibration_fraction: float = 0.0
    """Share of train/good set aside by default, see ``calibration``."""
    by_file_type: bool = False
    """Recognised by files that no other layout reads: it then goes before layouts that know folders alone."""


@dataclass(frozen=True)
class ReadSet:
    """One dataset as a layout reads it."""

    samples: list[SourceSample]
    """Keys need not be unique yet."""
    name: str | None = None
    """None: the benchmark's name, else the folder's."""
    field: str | None = None
    """None: as the layout declares."""
    modalities: tuple[Modality, ...] = ()
    """In slot order; empty: as the layout declares."""


class Layout(Protocol):
    """One way in which datasets lie on disk."""

    @property
    def info(self) -> LayoutInfo:
        """What it says of itself."""

    def recognises(self, root: Path) -> bool:
        """Whether ``root`` (a folder or a file, maybe missing) lies in this layout, judged by a glance."""

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        """All samples in ``root``: mostly one dataset, several from an index of many.

        Args:
            root: the dataset's folder, or the file that lists it.
            choices: what the user said of modalities, by name, for layouts that need it to name them; to leave
                out those of kind ``skip`` is the caller's part.
            notices: takes what the user should know.

        Raises:
            ValueError: files that contradict the layout.
        """
