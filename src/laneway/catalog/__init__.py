"""Which data files a dataset has: finding, scanning and caching them."""
