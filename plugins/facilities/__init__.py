"""Remote services (Globus, NERSC's Superfacility): hooks, operators, sensors, triggers, links.

Nothing in here knows of the beamline; `cosmic` does.
"""
