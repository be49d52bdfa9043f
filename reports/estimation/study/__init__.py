"""Estimates of a study: of arms (sets of options) that are trained with several seeds each."""
