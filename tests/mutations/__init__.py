"""Known failures of peers, planted into the code: the suite must notice each."""
