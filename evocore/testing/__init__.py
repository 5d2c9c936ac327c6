"""What ships to the authors of plug-ins: the means to test on several processes."""
