"""Dialogue records, and how they are read from files."""
