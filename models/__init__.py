"""Networks, losses and heads; no files, no arguments."""
