"""What is wrong or odd in a dataset before it is trained on: measured, judged, shown."""
