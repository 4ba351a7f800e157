def serve() -> None:
    """Being built."""
