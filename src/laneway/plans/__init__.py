"""What a job will do, and what each of its steps contained, computed without reading data."""
