"""How does it plug into OpenPCDet? The only place that knows its interfaces."""
