"""`python -m parlaunch` is `parlaunch`."""

from parlaunch.cli import main

main()
