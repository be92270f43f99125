"""From shards to batches: the order of samples, the stream, caches."""
