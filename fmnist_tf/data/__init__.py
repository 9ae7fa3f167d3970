"""Bytes on disk -> validated uint8 pixels -> batches. Knows nothing of networks."""
