"""Whether what a model is given in service is still like what it was calibrated on."""
