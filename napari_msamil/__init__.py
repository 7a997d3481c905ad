"""Explained multi-scale classification of whole-slide images, in napari and on the command line."""

from __future__ import annotations

__version__ = "0.1.0"
