"""Where experts live and how ranks work together: the DeepSpeed form of the model. Training only."""
