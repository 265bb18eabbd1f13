"""Tables, plots and a page from the JSON of the benchmarks."""
