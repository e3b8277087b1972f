"""Trainer, EMA, checkpoints, logs."""
