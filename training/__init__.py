"""Training: from labelled slides to a model file that the plugin opens."""
