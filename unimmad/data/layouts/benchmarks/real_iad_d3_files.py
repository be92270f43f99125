"""Real-IAD D3's files as shards hold them: all sensors in the size of RGB, positions and point clouds as depth."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unimmad.data.layouts.aligned import aligned_array, aligned_image
from unimmad.data.layouts.benchmarks.point_cloud import CLOUD_SUFFIX, read_cloud_depth
from unimmad.data.layouts.benchmarks.positions import read_height
from unimmad.data.layouts.encode import npy_bytes
from unimmad.data.layouts.source_set import SourceFile


def source_file(modality: str, path: Path, rgb: Path) -> SourceFile:
    """``path`` in the size of the picture ``rgb``, which stays as it is; depth as NPY, NaN where not measured."""
    if modality == "depth":
        return SourceFile(name=str(path), suffix=".npy", read=partial(_depth, path, rgb))
    return SourceFile.of(path) if path == rgb else aligned_image(path, rgb)


def _depth(path: Path, rgb: Path) -> bytes:
    depth_HW = read_cloud_depth(path) if path.suffix.lower() == CLOUD_SUFFIX else read_height(path)
    return npy_bytes(aligned_array(depth_HW, rgb))
