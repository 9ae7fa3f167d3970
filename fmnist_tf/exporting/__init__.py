"""SavedModel, LiteRT and ONNX."""
