"""A plan -> trained weights. Knows nothing of run directories or trackers."""
