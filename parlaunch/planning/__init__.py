"""Which layout to take, and why: the space, the search, the evidence, the reasons."""
