"""The comparison of federated methods: cells that can run anywhere, statistics on their predictions, and a report."""
