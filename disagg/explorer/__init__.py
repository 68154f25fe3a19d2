"""The explorer: a static page on which the twin runs in the browser, and what builds it (`make site`).

chapters   chapters of the course as pages, with their instruments and questions
settings   what can be chosen, how a permalink says it, and the Config and requests that follow
twin       one simulated run in slices, what the page shows of it, and what the page's worker calls
pyodide    the Python for browsers: which version, which files, and their checksum
site       puts index.html, scripts, Python and Pyodide into a folder, and says how far off the twin was found to be
"""
