"""From data files to the rows of a window, in the order of the epoch."""
