"""SavedModel, LiteRT and ONNX."""

FORMATS = ("saved_model", "litert", "onnx")
