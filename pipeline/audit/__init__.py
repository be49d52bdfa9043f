"""The audit: people label some of the faces, chosen with known probabilities."""
