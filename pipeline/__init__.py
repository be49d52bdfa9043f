"""The stages of the program: loading shards, training, sampling, labelling, detection and benchmarks."""
