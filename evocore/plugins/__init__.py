"""The doors for other packages, and who came through them. Imports no other room."""
