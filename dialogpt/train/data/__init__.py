"""Training data: dialogues read from files, token ids on disk, and batches of them."""
