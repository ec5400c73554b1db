"""LayerNorm over a leading slice of its parameters: ``api.layer_norm``."""
