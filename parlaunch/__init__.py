"""parlaunch: the layout, environment and command that fit a training job to the machine it stands on."""

__version__ = "0.1.0"
