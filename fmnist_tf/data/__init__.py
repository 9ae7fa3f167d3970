"""Bytes on disk -> validated uint8 pixels -> batches. Knows nothing of networks."""

IMAGE_SIZE = 28
"""Height and width of every image, in pixels."""
N_PIXELS = IMAGE_SIZE * IMAGE_SIZE
"""Pixels of an image, 784."""
