"""What comes in: PyTorch or ONNX, turned into one `Model`."""
