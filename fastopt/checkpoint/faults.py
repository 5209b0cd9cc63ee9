"""What is wrong with a checkpoint's file."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, is of a newer fastopt, or does not fit the optimizer.

    The message begins with the file's path. Nothing has changed then.
    """
