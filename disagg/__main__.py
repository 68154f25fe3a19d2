"""python -m disagg"""

from disagg.cli.main import main

main()
