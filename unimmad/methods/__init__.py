"""The methods that UniMMAD is compared with, one file each."""
