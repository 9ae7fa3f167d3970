"""This project beside plain Keras, OpenVINO and torch.compile: `python -m benchmarks`."""
