"""The loop over chunks of rows that every GPU backend shares."""
