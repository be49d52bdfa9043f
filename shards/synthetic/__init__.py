"""Synthetic, annotated faces: the default data set, whose true attributes are known."""
