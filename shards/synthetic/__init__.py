"""Synthetic, annotated faces: the embedded default data set, whose truth is known."""
