"""A plan or a machine for people and other programs: screen, report, scripts."""
