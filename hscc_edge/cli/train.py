def train() -> None:
    """Being built."""
