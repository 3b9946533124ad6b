"""The command line: looks at data, plans, states and checkpoints."""
