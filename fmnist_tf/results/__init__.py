"""What a run leaves behind. Never loads a model and never imports TensorFlow."""
