"""Aggregators: one file per multiple-instance learning method."""
