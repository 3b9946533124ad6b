"""What a framework needs beyond a SavableLoader: one module for each, which imports it."""
