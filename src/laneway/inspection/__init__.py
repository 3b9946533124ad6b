"""Looks at saved states: what they hold, whether they prove that each row came once, and their parts for each rank."""
