"""The beamline: scan names, site settings, reconstruction parameters and results of COSMIC (ALS 7.0.1.2)."""
