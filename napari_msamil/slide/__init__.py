"""Slides: pixels on demand from whole-slide files; knows neither torch nor Qt."""
