"""From shards to batches of images on the training device."""
