"""Writes an export program as an ONNX file or a torch.export archive, its metadata inside."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from unimmad.inference.export.metadata import IMAGES_INPUT, MAPS_OUTPUT, SCORES_OUTPUT, ExportMetadata
from unimmad.inference.export.program import ExportProgram
from unimmad.serialization.atomic_write import write_aside

METADATA_FILE = "unimmad.json"
"""The extra file of a torch.export archive."""
ONNX_LIMIT = 2 * 2**30
"""Bytes that one ONNX file may have."""


def write_torch(program: ExportProgram, metadata: ExportMetadata, target: Path) -> None:
    """A ``.pt2`` archive; its extra file ``unimmad.json`` holds the metadata.

    Raises:
        ValueError: the target cannot be written.
    """
    traced = trace(program, metadata)
    description = json.dumps(metadata.model_dump(mode="json", by_alias=True), ensure_ascii=False)

    # In memory first: where the disk is full, PyTorch's own writer ends the process.
    archive = io.BytesIO()
    torch.export.save(traced, archive, extra_files={METADATA_FILE: description})
    write_aside(target, lambda temporary: temporary.write_bytes(archive.getbuffer()))


def write_onnx(program: ExportProgram, metadata: ExportMetadata, target: Path) -> None:
    """One ``.onnx`` file with the weights inside; its metadata are JSON, an entry for each field.

    Raises:
        ValueError: the packages for it are not installed, the file would be above 2 GiB, or can't be written.
    """
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise ValueError(f'ONNX export needs the package {missing[0]}: pip install "unimmad[export]"')
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict().values())
    if size >= ONNX_LIMIT:
        raise ValueError(f"the weights are {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB; use --format torch")
    with _quiet():
        exported = torch.onnx.export(
            trace(program, metadata),
            dynamo=True,
            input_names=[IMAGES_INPUT],
            output_names=[MAPS_OUTPUT, SCORES_OUTPUT],
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(metadata.to_strings())
    write_aside(target, lambda temporary: exported.save(temporary, external_data=False))


def trace(program: ExportProgram, metadata: ExportMetadata) -> ExportedProgram:
    """The program as a graph for any batch size."""
    size = metadata.image_size
    # Two samples, since a tracer takes a batch of one for a constant.
    example_BMCHW = torch.zeros(2, len(metadata.modalities), 3, size, size)
    with torch.no_grad(), _quiet():
        return torch.export.export(program, (example_BMCHW,), dynamic_shapes={"images": {0: Dim("batch", min=1)}})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own insides."""
    logger = logging.getLogger("onnxscript")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
