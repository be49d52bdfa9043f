"""Estimates from labels and predictions, with their uncertainty."""
