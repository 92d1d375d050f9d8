"""
Driving a rented RunPod pod: from a laptop to a finished checkpoint, and never a forgotten bill.
"""
