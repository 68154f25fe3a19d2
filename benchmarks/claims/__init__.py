"""Every number that README and notebooks print, with what backs it: `python -m benchmarks claims`.

`claims.toml` beside this file is written by hand and says which sentences hold which numbers and where these come from;
`figures/claims.json` is the ledger, computed from it. To add a number:

1. Write the sentence as a template, "{tokens_per_s[colocated]:.1f} tokens/s", and quote it so in claims.toml, in a
   `[claim.ID]`. A format may end in a scale: `.0fms`, `.0fpc` (percent), `.2fG`.
2. Say what backs it, in one line: `measured = "demo"` (rows of a bench in figures/measured, written by its `--json`;
   `[measured.demo]` holds command, date, workload and baseline), `found = "overlap"` (a function of simulated.py or
   measured.py), `worked = { e = "8 + 29 * (8 - 2)" }` (arithmetic over the virtual clock's costs), or
   `cell = "ladder"` (the stored output of a notebook's cell, which nbval compares).
3. A number that is chosen and not found (a limit, a slider's position, a version) is quoted under its file's
   `[setting."FILE"]`, with its reason.
4. Run `python -m benchmarks claims --refresh`. It writes the ledger, and renders in the pages what changed.

A test compares all of it (tests/test_claims.py): a quote that is not in its file, a number that comes out otherwise,
and a number in no quote are each an error. Numbers are those in digits with a unit, a decimal point, or a table cell
of their own; code is left out.
"""
