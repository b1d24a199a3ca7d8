"""A stand-in for OpenPCDet: its contract around the built-in engine's networks, for machines that have no OpenPCDet."""

__version__ = "stand-in"
