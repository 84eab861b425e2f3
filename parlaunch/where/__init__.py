"""Where parlaunch stands: which launcher started it, on which nodes, and which of them this is."""
