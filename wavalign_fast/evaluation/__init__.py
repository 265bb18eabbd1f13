"""Evaluates a model on prompts: answers, speech, scores and a report, each kept in a file."""
