"""Packs images on disk into tar shards for DALI, with a table of their annotations."""
