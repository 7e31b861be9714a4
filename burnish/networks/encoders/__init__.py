"""Encoders: what makes features of observations that are not a state."""
