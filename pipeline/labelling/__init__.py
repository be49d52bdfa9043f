"""Labelling images by CLIP, a probe and pixels."""
