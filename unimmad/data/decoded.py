"""One decoded image, and what its file said of it beside the pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unimmad.data.orientation import UPRIGHT

PLANES_READ = "read as one picture; if they are images of their own, save each as a file"


@dataclass(frozen=True)
class DecodedImage:
    """An image as it is to be seen: turned as its orientation tag says, without alpha."""

    pixels: np.ndarray
    """H x W or H x W x C, in the byte order of this machine."""
    file_type: str
    """``PNG``, ``JPEG``, ``TIFF`` or ``NPY``, by its bytes."""
    orientation: int = UPRIGHT
    """Its EXIF orientation, already carried out."""
    lossy: bool = False
    """Compressed as JPEG, which leaves ripples round edges."""
    transparent: float = 0.0
    """Share of the pixels whose alpha, left out, is not opaque."""
    planes: bool = False
    """A TIFF's channels were stored one after the other, as a stack of single images is by some writers."""

    def with_pixels(self, pixels: np.ndarray) -> DecodedImage:
        return replace(self, pixels=pixels)

    def called(self, where: str) -> str:
        """``where`` for messages of sizes, with what was done to the image."""
        if self.orientation == UPRIGHT:
            return where
        return f"{where} (turned as its EXIF orientation {self.orientation} says)"

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of how it was read."""
        notes = []
        if self.orientation != UPRIGHT:
            notes.append(f"turned as its EXIF orientation {self.orientation} says")
        if self.transparent:
            notes.append(
                f"{self.transparent:.1%} of its pixels are transparent: alpha is left out, the colours beneath are read"
            )
        if self.planes:
            notes.append(f"its channels are stored as planes: {PLANES_READ}")
        return tuple(notes)
