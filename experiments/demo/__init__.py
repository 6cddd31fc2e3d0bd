"""The demo: a whole federation on synthetic patients, as separate processes (`python -m experiments.demo`)."""
