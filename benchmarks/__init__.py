"""Kernel times, ours beside our peers'. `python -m benchmarks --help`."""
