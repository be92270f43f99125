"""A checkpoint's run over a split: scored, collected class by class, resumed, and shared out over processes."""
