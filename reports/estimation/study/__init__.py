"""Estimates of a study: of conditions, each trained with several seeds."""
