"""Bytes on disk -> validated uint8 pixels -> batches."""

IMAGE_SIZE = 28
"""Side of a grey image."""
N_PIXELS = IMAGE_SIZE * IMAGE_SIZE
