"""Running the same commands on a cluster: launch files, job entry points, a submit helper."""
