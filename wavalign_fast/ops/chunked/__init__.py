"""The loop over chunks of rows that serves every GPU backend, and what it is made of."""
