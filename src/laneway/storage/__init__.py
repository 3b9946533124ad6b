"""Storage of data files: one filesystem per process, listings, ranges of bytes, retries."""
