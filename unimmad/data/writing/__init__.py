"""From datasets to shards: checked, packed, and held against their index."""
