"""Labels images by CLIP, by a probe on its embeddings and by the pixels of the skin, and evaluates these methods."""
