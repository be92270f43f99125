"""The methods that UniMMAD is compared with: a file each, and what they share or are made of beside it."""
