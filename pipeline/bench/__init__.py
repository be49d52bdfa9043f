"""Benchmarks: every figure next to a plain baseline in the same run."""
