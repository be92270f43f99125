"""Several methods on the same data: each trained and scored, one table of all."""
