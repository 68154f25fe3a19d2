"""Colours, hatches and words for each kind of work: the same in every picture, widget and page."""

#: Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = {"prefill": "#0072B2", "link": "#E69F00", "decode": "#009E73", "paging": "#CC79A7"}
#: What tells them apart without colour, as in a greyscale print.
HATCHES = {"prefill": "", "link": "///", "decode": "...", "paging": "xxx"}

#: A kind of span → its colour and hatch; and what a legend says of them.
COLOUR_OF = {"prefill": "prefill", "copy": "link", "decode": "decode", "spill": "paging", "fetch": "paging"}
LEGEND = {"prefill": "prefill pass", "link": "copy of a layer", "decode": "decode step", "paging": "spill or fetch"}

#: A request's colour by its number, in every view: eight light colours of Paul Tol's, which people with any colour
#: vision can tell apart, under dark numbers.
REQUESTS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00")

INK = "#222222"
FAINT = (1.0, 1.0, 1.0, 0.6)  # of hatches and ticks on a colour
