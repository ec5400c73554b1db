"""Baselines, cases, an interleaved runner, stored results. Not installed with the package."""
