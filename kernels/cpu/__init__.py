"""Loops and launches on the CPU, around rules; ``cuda`` has the same for GPUs."""
