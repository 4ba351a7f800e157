def demo() -> None:
    """Being built."""
