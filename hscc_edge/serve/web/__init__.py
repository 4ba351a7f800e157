"""The HTTP door: dashboard, accounts, live pages; it mounts STOW-RS, metrics and health."""
