"""Passes without gradients as compiled code."""
