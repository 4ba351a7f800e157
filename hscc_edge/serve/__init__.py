"""The daemon at the point of care: what it acknowledges it keeps, and brings to one terminal state."""
