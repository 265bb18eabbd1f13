"""GLM-4-Voice's speech tokenizer and decoder, in plain torch; VITA-Audio speaks the same codes."""
