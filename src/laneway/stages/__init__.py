"""Stages: what becomes of the rows of a lane before they are delivered, as pure functions."""
