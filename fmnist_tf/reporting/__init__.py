"""What people look at: figures, the HTML page, the model card, Weights & Biases."""
