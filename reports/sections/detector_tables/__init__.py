"""Tables of the section on detectors."""
