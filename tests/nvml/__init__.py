"""A library that pynvml takes for the driver's, and the machine behind it."""
