"""Numbers that are read off a recording in figures/data."""

from benchmarks.claims.evidence import Finding, digest_of_runs
from disagg.show import recordings


def staged_law() -> Finding:
    """How far H on the staged route lies from the law, over all recorded dials: the most, in points."""
    runs = recordings.staged()
    off = [100 * abs(run.overlap(0).hidden - run.law(0).hidden) for run in runs.values()]
    return Finding(
        {"most_off_points": max(off), "slowest_dial": max(runs)},
        f"{recordings.COMMAND} --only staged",
        "one prompt of 2,048 tokens over the staged route, at each dial",
        digest_of_runs(runs.values()),
        next(iter(runs.values())).machine,
        "the law with each run's own c, x and tail",
        {"most_off_points": (min(off), max(off))},
    )


def staged_hidden() -> Finding:
    """H over two hops at two dials: a wire four times as slow as the compute, and one twice as fast."""
    runs = recordings.staged()
    values = {f"hidden[{dial:g}]": runs[dial].overlap(0).hidden for dial in (4.0, 0.5)}
    laws = {dial: runs[dial].law(0) for dial in (4.0, 0.5)}
    values |= {f"slower[{dial:g}]": max(law.hops_s) / law.compute_s for dial, law in laws.items()}
    sha256 = digest_of_runs(runs[dial] for dial in laws)
    words, command = "one prompt of 2,048 tokens over the staged route", f"{recordings.COMMAND} --only staged"
    machine, why = runs[4.0].machine, "the run with the median H of several; the others were not kept"
    return Finding(values, command, words, sha256, machine, "none: H is a share", why_no_interval=why)


RECORDED = {"staged_law": staged_law, "staged_hidden": staged_hidden}
