"""What follows from a plan for the process: variables, binding, overrides; and what the user said of each."""
