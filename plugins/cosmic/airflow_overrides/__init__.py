"""What relies on parts of Airflow 3.3.2 that are not its public interface.

Each module names the Airflow source or issue that it works around. Its test in `tests/cosmic` fails once the
installed Airflow no longer needs it: then delete it.
"""
