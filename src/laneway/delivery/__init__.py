"""Delivery: from the lanes of a worker to the batches of the training loop, and the count of what was delivered."""
