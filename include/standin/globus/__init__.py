"""Globus Auth and Globus Transfer v0.10 of the stand-in facility."""
