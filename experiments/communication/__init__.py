"""What communication costs, measured: rounds without training, bytes on the wire, idle chatter, a slow line. No tests."""
