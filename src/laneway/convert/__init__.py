"""From Arrow arrays to torch, numpy and Python."""
