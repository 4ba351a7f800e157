def compress() -> None:
    """Being built."""
