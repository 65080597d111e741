"""The whole Xwin-LM alignment recipe as composable command-line stages."""

__version__ = "0.1.0"
