"""Which parlaunch this is. In a file of its own, so that nothing has to import the front door to say it."""

__version__ = "0.1.0"
