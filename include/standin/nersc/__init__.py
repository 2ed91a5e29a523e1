"""NERSC as the stand-in has it: the token endpoint, the Superfacility API v1.2 and a batch scheduler."""
