"""How much memory a run needs on each rank, before it is started and without its weights."""
