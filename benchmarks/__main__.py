"""python -m benchmarks"""

from benchmarks.suites import main

main()
