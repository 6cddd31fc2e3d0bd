"""What a vendor that no site has is served: some methods, each after so many of its cases."""

UNSEEN = "unseen"
BASES = ("fedit-r16", "med-duallora", "ours")
SHOTS = (0, 4, 8, 16)
EPOCHS = 20


def key(base: str, shots: int) -> str:
    """Return what a base's predictions after so many shots are called."""
    return f"{base}@{shots}"
