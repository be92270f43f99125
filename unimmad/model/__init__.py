"""The network in plain PyTorch: it knows nothing of data, training or ranks, and can be taken out of the package."""
