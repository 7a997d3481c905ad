"""Networks and the model file that carries them."""
