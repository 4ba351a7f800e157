"""The evidence pack: recorded results as documents. It renders what was recorded and runs nothing again."""
