"""Anomaly-detection metrics, by numpy and scipy alone: maps and scores in, numbers out."""
