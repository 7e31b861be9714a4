"""Demonstrations made in simulation."""
