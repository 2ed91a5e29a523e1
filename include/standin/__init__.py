"""A local stand-in for Globus and NERSC: one HTTP server, real files copied, real jobs run.

It is tested with clients that were not written for it: globus-sdk, globus-cli and sfapi_client.
"""
