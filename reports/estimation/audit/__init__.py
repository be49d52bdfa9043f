"""Shares from human labels of a few samples, and what these labels say about the labeller."""
