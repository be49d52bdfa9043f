"""Numbers to estimates, figures and one page."""
