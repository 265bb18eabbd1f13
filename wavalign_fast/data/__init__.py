"""Dialogue records and how they are read and sampled."""
