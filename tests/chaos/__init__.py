"""Broken on purpose: runs that are killed, files that are damaged, trainings that last. `make chaos` runs all of it."""
