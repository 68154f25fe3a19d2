"""The report's table: overlap 60 -> 96 %, TTFT 20x, throughput 4x, each as written and in one setting, rivals beside.

A cell says how it was got: "ran" on this machine just now, "recorded" on another one before, or by the "twin" just now.
"As written" each number has the work under which it can come out; in "one setting" all share work and configuration.
`cell.py` has what a cell is and says, `here.py` and `elsewhere.py` fill them, `table.py` shows them. `make report`.
"""
