"""Linear layer on a leading slice of its weight: ``api.linear``."""
