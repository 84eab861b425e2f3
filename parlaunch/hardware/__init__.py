"""What it runs on: clusters, data sheets, rates, and who sits where."""
