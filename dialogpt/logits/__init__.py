"""The functions that change the scores of the next token; `dialogpt.sampler` has their order."""
