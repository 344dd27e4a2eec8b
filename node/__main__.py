"""`python -m node`: the same as the console command `cornerstore`."""

from node.cli import main

main()
