"""Peak memory and seconds of one iteration of a layout on a machine."""
