"""Changes the process: agreement between nodes, torchrun's argv, `exec`, and what every rank runs."""
