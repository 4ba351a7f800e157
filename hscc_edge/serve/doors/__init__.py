"""The doors: C-STORE, STOW-RS and a watched folder, on one intake that acknowledges what is on disk."""
