"""What is known between passes, of the API server's objects and of reports. All of it can be lost."""
