"""The configuration of a training run: its keys, the layers it is made from, its YAML, its listing.

Nothing is imported here: the schema needs pydantic, and ``import wavalign_fast`` must not.
"""
