"""The training loop, checkpoints and run directories that the DCGAN and the detectors share."""
