"""Shards become tensors, a trained generator and labelled samples."""
