"""Tables, plots and a page, made from the JSON of the benchmarks."""
