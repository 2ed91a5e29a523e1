"""Remote services (Globus, NERSC's Superfacility): hooks, operators, sensors, triggers, links.

Nothing in here depends on the beamline: that is in `cosmic`.
"""
