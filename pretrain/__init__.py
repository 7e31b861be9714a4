"""Pretraining: behaviour cloning of a diffusion policy."""
