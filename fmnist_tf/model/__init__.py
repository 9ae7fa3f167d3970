"""Raw pixels -> class probabilities."""
