"""Results: the report, its other forms, and their way to each destination."""
