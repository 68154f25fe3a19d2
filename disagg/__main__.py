"""python -m disagg"""

from disagg.show.cli import main

main()
