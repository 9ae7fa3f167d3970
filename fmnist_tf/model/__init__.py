"""Raw pixels -> class probabilities. Knows nothing of files of data, loops or runs."""
