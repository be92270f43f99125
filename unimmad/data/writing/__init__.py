"""From data sets to shards: checked, packed, and held against their index."""
