"""How the network's operations are computed on the hardware at hand; equal to rounding."""
