def export() -> None:
    """Being built."""


def build() -> None:
    """Being built."""
