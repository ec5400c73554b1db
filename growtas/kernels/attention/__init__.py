"""Attention with 2-D relative position on keys and values: ``api.attention``."""
