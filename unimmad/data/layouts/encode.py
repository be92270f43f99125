"""Arrays to the bytes of the files that shards hold."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def npy_bytes(array: np.ndarray) -> bytes:
    """NPY, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def png_bytes(array: np.ndarray) -> bytes:
    """PNG of uint8 or uint16, H x W, or uint8, H x W x 3."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()
