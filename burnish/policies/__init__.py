"""Policies: raw observations in, raw action chunks out; one folder evaluates alone."""
