"""What can be said of a federation to people: one set of facts for the page, `aggregator status`, and the metrics.

`material` reads the store, `facts.make` is the pure function that makes JSON values of what was read; the modules beside
it each make a part of them. `calls` is what this process counts, `current` shares one reading among all who ask.
"""
