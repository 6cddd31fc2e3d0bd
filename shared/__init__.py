"""What aggregator and site agent must agree on. Nothing here needs torch."""
