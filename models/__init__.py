"""Networks, losses and classification heads."""
