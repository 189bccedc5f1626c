"""What is to become of a run. Pure: values in, values out."""
