"""What ships to the authors of plug-ins: the means to test on several processes, and to prove a backend.

``evocore.testing.distributed`` runs a function on several ranks in milliseconds, ``evocore.testing.pytest_plugin``
makes a fixture of it, and ``evocore.testing.conformance`` checks kernels, devices and collectives against their
contracts: as a command, as a library, and as tests in a plug-in's own repository.
"""
