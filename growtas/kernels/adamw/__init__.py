"""AdamW on boxes of parameters."""
