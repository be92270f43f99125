"""UniMMAD: one anomaly-detection model for many classes and many imaging modalities.

Folders in the order of the data's way: ``data`` (sets on disk, shards, stream), ``model`` (plain torch),
``parallel`` (where experts live: DeepSpeed MoE), ``training``, ``checkpoint``, ``evaluation``.
"""

from unimmad.cpu_features import prefer_fast_sort

__version__ = "0.1.0"

prefer_fast_sort()
