"""Inference: from a slide and a model to an explained prediction."""
