"""What programs call in place of the commands: training in this process, and runs on disk."""
