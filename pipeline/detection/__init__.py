"""Training and evaluating detectors of generated faces."""
