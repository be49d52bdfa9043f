"""Shards become batches of images on the training device."""
