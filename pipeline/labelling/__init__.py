"""Labels images by CLIP, by a probe on its embeddings and by the colour of skin pixels, and evaluates these methods."""
