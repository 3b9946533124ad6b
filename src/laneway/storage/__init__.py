"""Where data files are: one filesystem per process, listings, ranges of bytes, retries."""
