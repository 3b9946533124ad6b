"""Pure functions and values: the order of an epoch, its lanes, its progress and its states. Imports numpy only."""
