"""Benchmarks: every measurement next to a plain baseline in the same run."""
