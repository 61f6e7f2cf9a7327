"""Training: dialogues in files become a checkpoint that talks.

Data flows one way, and so should a reader: `dialogues` (a line is a dialogue or a reason), `prepare` (text to
memory-mapped ids), `batches` (which ids are learned together), `objective` (the loss), `optimizer` (how weights move),
`trainer` (one step; `dropout` is its cheaper draw on a CPU), `run` (the folder on the disk), `fit` (all of it, from
beginning to end). `processes` is what several processes share, `settings` every knob with its range, `command`,
`listener` and `picture` what a person sees.
"""
