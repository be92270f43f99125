"""One's own medical scans: folders of DICOM or NIfTI, a sample a slice."""
