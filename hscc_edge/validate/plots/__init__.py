"""The report's plots as inline SVG: one file each, and the figures of each stand in a table of the report too."""
