"""Drawn, annotated faces: the embedded default, whose truth is known."""
