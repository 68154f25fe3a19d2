"""The explorer: a static page on which the twin runs in the browser, and what builds it (`make site`).

settings   what can be chosen, how a permalink says it, and the Config and requests that follow
twin       one simulated run in slices, and what the page is told of it
browser    the words that the page's worker calls; the last of what goes into the browser
pyodide    the Python for browsers: which version, which files, and their digest
accuracy   how far off the twin was found to be
site       puts index.html, scripts, Python and Pyodide into a folder
"""
