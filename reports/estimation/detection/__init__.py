"""Uncertainty of detectors' metrics, their trade-off of utility and fairness, and thresholds by group."""
