"""`python -m hscc_edge` is `hscc-edge`."""

from hscc_edge.cli import main

main()
