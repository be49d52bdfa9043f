"""Studies: several conditions, each trained with several seeds."""
