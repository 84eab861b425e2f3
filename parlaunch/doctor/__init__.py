"""What is wrong with a machine for a job, by severity."""
