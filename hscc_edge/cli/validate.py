def validate() -> None:
    """Being built."""
