"""Attacks on text encoders, to test the detector with; each one yields a Patch and what it achieves."""
