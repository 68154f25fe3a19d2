"""A run at a cell's end: its sentence, its timeline, and a bar of where its requests' time went."""

from html import escape

from disagg.show.plots.picture import STYLE
from disagg.show.plots.receipt_plot import receipts_picture
from disagg.show.plots.summaries import sentence
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.trace.results import Run


def run_card(run: Run) -> str:
    """HTML; the sentence alone where nothing was recorded."""
    pictures = []
    if run.timeline.spans:
        pictures.append(timeline_picture(run))
        if run.has_receipts:
            pictures.append(receipts_picture({"requests": run}))
    return f"{STYLE}<p>{escape(sentence(run))}</p>" + "".join(picture.as_html() for picture in pictures)
