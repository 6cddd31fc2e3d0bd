"""Accuracy under differential privacy on the SYNTHETIC phantom: `python -m experiments.privacy`."""
