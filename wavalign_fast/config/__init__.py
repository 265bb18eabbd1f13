"""The configuration of a training run: its schema, its layers, its YAML and its listing.

Nothing is imported here, because the schema needs pydantic and ``import wavalign_fast`` must not.
"""
