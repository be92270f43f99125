"""From datasets on disk to batches of a model: layouts, shards, stream, resized and normalised input."""
