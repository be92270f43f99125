"""Datasets as they lie on disk, found and turned into a ``SourceSet``.

A layout is a class with ``info``, ``recognises`` and ``read`` (see ``layout.Layout``), listed in ``LAYOUTS``.
"""

from unimmad.data.layouts.find import FoundSet, find_set, find_sets
from unimmad.data.layouts.registry import LAYOUTS, layout_table

__all__ = ["LAYOUTS", "FoundSet", "find_set", "find_sets", "layout_table"]
