"""Training the DCGAN and sampling from it."""
