"""Checkpoints: folders of safetensors and JSON, read without DeepSpeed and at any world size."""
