"""The training loop, checkpoints and the lifecycle of a run, shared by the DCGAN and the detectors."""
