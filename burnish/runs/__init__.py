"""A run's folder: its checkpoints, metrics and results, and how it stops."""
