"""Decoding: from the scores of the next token to replies, one sequence or many, with beams or a draft model."""
