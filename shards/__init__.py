"""Images on disk become shards that a GPU can eat."""
