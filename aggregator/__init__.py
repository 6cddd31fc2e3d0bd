"""The aggregator: rounds, aggregation, store, gRPC server and its command line. Runs without torch."""
