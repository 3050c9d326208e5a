"""`python -m raycrt` is `raycrt`."""

from raycrt.cli.main import main

main()
