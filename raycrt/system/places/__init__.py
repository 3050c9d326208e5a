"""Places of runs and data, on disks and object stores."""
