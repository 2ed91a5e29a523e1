"""What developers run on their own machine: a local Airflow, the demo, chaos runs, the benchmark."""
