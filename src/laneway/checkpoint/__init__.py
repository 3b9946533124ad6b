"""Training checkpoints: one commit for model, optimizer, loader, and what the user adds."""

from laneway.checkpoint.checkpoints import Checkpoints
from laneway.checkpoint.layout import Checkpoint
from laneway.checkpoint.restoring import Resumed
from laneway.checkpoint.retention import KeepBest, KeepEvery, KeepLatest, Policy

__all__ = ["Checkpoint", "Checkpoints", "KeepBest", "KeepEvery", "KeepLatest", "Policy", "Resumed"]
