"""A head of which each rank of a process group holds a slice of the vocabulary."""
