"""Families of spoken dialogue models: their files, prompts and answers, on native classes."""
