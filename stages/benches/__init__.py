"""What `python -m stages.bench` measures, one module for each `bench.what`."""
