"""What a user deploys: a trained model on one's own images, its thresholds, and its export. Needs no DeepSpeed."""
