"""Operations: audit, metrics, alarms, retention, backup; what keeps the box in order for years."""
