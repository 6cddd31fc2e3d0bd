"""The federation's report for its consortium: who took part, what was agreed, what came of it, and whether it can be believed."""
