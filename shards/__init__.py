"""Images on disk become tar shards, which DALI reads, and a table of their annotations."""
