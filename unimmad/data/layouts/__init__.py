"""Data sets as they lie on disk, found and turned into a ``SourceSet``.

A layout is a class with ``name``, ``recognises`` and ``read_class`` (see ``scan.Layout``), listed in
``LAYOUTS``.
"""

from unimmad.data.layouts.find import LAYOUTS, FoundSet, find_set

__all__ = ["LAYOUTS", "FoundSet", "find_set"]
