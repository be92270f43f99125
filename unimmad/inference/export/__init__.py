"""A checkpoint as one file for other runtimes: ONNX, or a torch.export program."""
