"""What a serving process shows over HTTP: the status page, its facts as JSON, metrics, and health. Read-only."""
