"""Stable-Baselines3's algorithms as stages."""
