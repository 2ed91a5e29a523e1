"""The beamline: scan names, collections, reconstruction parameters and results of COSMIC (ALS 7.0.1.2)."""
