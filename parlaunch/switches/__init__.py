"""Performance switches beside the sizes: what may be turned on, where, and what is never touched."""
