"""Files, processor, memory, signals and TensorFlow's start."""
