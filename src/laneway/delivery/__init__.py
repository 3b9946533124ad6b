"""From the lanes of a worker to what a training loop receives, and what has been delivered."""
