"""Benchmarks as their authors publish them, one layout a file."""
