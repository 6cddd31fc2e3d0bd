"""What training costs, measured: steps, their floor, whole epochs, memory, the cache and what it may change. No tests."""
