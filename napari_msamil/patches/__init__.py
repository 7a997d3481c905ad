"""Patches: where to look on a slide, and their pixels."""
