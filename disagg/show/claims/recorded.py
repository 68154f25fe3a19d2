"""Numbers that are read off a recording in figures/data."""

from disagg.show import recordings
from disagg.show.claims.finding import Finding, digest_of_runs


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


RECORDED = {"staged_law": staged_law}
