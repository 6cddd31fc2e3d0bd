"""The protocol's Python package: generated messages and stubs, one sub-package per major version."""
