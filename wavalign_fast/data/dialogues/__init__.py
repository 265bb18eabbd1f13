"""Spoken dialogues in the schemas of WavAlign's release: read, checked, and paired for DPO."""
