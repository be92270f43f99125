"""One's own images: from files to scores, decisions and heat maps. Needs no DeepSpeed."""
