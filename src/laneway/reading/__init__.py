"""From data files to rows of lanes, in the order of the epoch."""
