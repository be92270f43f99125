"""A one-dimensional array that grows: in memory, or in a file that is mapped into it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18
"""Elements worked on at a time: bounds the memory of what is computed from an array."""


def blocks(length: int) -> Iterator[slice]:
    """``length`` elements as consecutive slices of at most ``BLOCK``."""
    for start in range(0, length, BLOCK):
        yield slice(start, min(start + BLOCK, length))


class GrowingArray:
    """Appended to at its end, read and sorted as a whole."""

    def __init__(self, dtype: type[np.generic], folder: Path | None = None) -> None:
        """In memory, or in a nameless file in ``folder``, which is gone with the array or its process.

        Raises:
            ValueError: ``folder`` can't be written to.
        """
        self._dtype = np.dtype(dtype)
        self._folder = folder
        self._storage = _Memory(self._dtype) if folder is None else _File(self._dtype, folder)

    def append(self, values: NDArray) -> None:
        """Copy ``values`` to the end.

        Raises:
            ValueError: the disk is full.
        """
        self._storage.append(values)

    @property
    def values(self) -> NDArray:
        """What was appended, as a view that is valid until the next ``append``."""
        return self._storage.values()

    def sorted_copy(self) -> NDArray:
        """The values, ascending, where the array keeps its own: in memory or in a file."""
        copy = GrowingArray(self._dtype.type, self._folder)
        values = self.values
        for block in blocks(len(values)):
            copy.append(values[block])
        sorted_values = copy.values
        sorted_values.sort()
        return sorted_values


class _Memory:
    """At most an eighth larger than what it holds."""

    def __init__(self, dtype: np.dtype) -> None:
        self._buffer: NDArray = np.empty(0, dtype=dtype)
        self._length = 0

    def append(self, values: NDArray) -> None:
        needed = self._length + len(values)
        if needed > len(self._buffer):
            # Large arrays are moved by remapping their pages, so growing needs no second copy. No view outlives the
            # next append, by contract, which makes skipping the reference check safe.
            self._buffer.resize(needed + self._length // 8, refcheck=False)
        self._buffer[self._length : needed] = values
        self._length = needed

    def values(self) -> NDArray:
        return self._buffer[: self._length]


class _File:
    """The system keeps in memory what fits, and writes the rest out when memory gets short."""

    def __init__(self, dtype: np.dtype, folder: Path) -> None:
        self._dtype = dtype
        self._folder = folder
        self._length = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (open as long as the array)
        except OSError as error:
            raise ValueError(f"cannot keep pixel scores in {folder}: {error.strerror}; choose another folder") from None

    def append(self, values: NDArray) -> None:
        data = np.ascontiguousarray(values, dtype=self._dtype).data.cast("B") if len(values) else b""
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise ValueError(f"cannot keep pixel scores in {self._folder}: {error.strerror}; free some space") from None
        self._length += len(values)

    def values(self) -> NDArray:
        if self._length == 0:
            return np.empty(0, dtype=self._dtype)
        return np.memmap(self._file, dtype=self._dtype, mode="r+", shape=(self._length,)).view(np.ndarray)
