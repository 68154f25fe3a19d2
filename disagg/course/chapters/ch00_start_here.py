"""Questions of notebooks/00_start_here.ipynb."""

QUIZ = ()
