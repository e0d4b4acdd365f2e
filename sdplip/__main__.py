"""`python -m sdplip` is the command `sdplip`."""

from .cli import main

main()
