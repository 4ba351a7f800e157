"""The daemon at the point of care: what it acknowledges it keeps, and every kept instance reaches one terminal state."""
