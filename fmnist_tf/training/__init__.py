"""A plan -> trained weights."""
