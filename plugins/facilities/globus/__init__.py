"""Globus Transfer: hook, operators, triggers and links."""
