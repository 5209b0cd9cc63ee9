"""Checkpoints: an optimizer's state, and what belongs to it, in a file that outlives the process."""
