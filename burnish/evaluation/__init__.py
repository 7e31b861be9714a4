"""Policies rolled out with fixed seeds: episodes, intervals, videos."""
