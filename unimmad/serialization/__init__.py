"""Files that are whole or absent, and JSON and YAML of any origin, checked as they are read."""
