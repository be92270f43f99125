"""The processes of one run: what they share of a machine, tell each other and say of problems; without DeepSpeed."""
