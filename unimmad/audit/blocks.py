"""What an interrupted audit has measured already, block by block of samples.

OUTPUT/.partial/NNNNNN.safetensors      facts in the metadata; hashes and patches as tensors; gone when all is written
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unimmad import __version__
from unimmad.audit.facts import SampleFacts, facts_from_json, facts_to_json
from unimmad.audit.samples import AuditSample
from unimmad.data.writing.duplicates import HASH_VALUES
from unimmad.serialization.atomic_write import write_aside

FOLDER = ".partial"
BLOCK = 128
"""Samples of a block."""
_FINGERPRINT, _FACTS, _HASHES, _PATCHES = "fingerprint", "facts", "hashes", "patches"


@dataclass(frozen=True)
class Block:
    """Some samples, measured."""

    facts: tuple[SampleFacts, ...]
    hashes_NK: NDArray[np.uint8]
    """Of every image of every sample, in their order."""
    patches_TPE: Tensor
    """float16, of every image of every sample of train and calibration, in their order; none without features."""


class Blocks:
    """The finished blocks of one audit."""

    def __init__(self, output: Path, settings: dict[str, str | int]) -> None:
        """``output`` is where the audit will be written; ``settings`` are all that changes what is measured."""
        self.folder = output / FOLDER
        self._settings = settings

    def load(self, number: int, samples: Sequence[AuditSample]) -> Block | None:
        """The block of that number, if it is there and was measured of these samples as they are now."""
        wanted = self._fingerprint(samples)
        try:
            with safe_open(self._path(number), framework="pt") as file:
                words = file.metadata() or {}
                if wanted is None or words.get(_FINGERPRINT) != wanted:
                    return None
                facts = facts_from_json(words[_FACTS])
                return Block(facts, file.get_tensor(_HASHES).numpy(), file.get_tensor(_PATCHES))
        except (OSError, ValueError, KeyError, SafetensorError):
            return None

    def save(self, number: int, samples: Sequence[AuditSample], block: Block) -> None:
        """Keep a block, unless nobody could tell whether its samples changed.

        Raises:
            ValueError: the folder can't be written to.
        """
        if (fingerprint := self._fingerprint(samples)) is None:
            return
        tensors = {
            _HASHES: torch.from_numpy(block.hashes_NK.reshape(-1, HASH_VALUES)),
            _PATCHES: block.patches_TPE.contiguous(),
        }
        words = {_FINGERPRINT: fingerprint, _FACTS: facts_to_json(block.facts)}
        write_aside(self._path(number), lambda temporary: save_file(tensors, temporary, metadata=words))

    def remove(self) -> None:
        """Forget all blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _fingerprint(self, samples: Sequence[AuditSample]) -> str | None:
        of_samples = [sample.fingerprint for sample in samples]
        if None in of_samples:
            return None
        return hashlib.sha256(json.dumps([__version__, self._settings, of_samples]).encode()).hexdigest()
