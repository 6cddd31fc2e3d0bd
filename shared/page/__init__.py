"""Reports as one HTML file: no script, nothing to load, light and dark, for a projector, a phone and paper."""
