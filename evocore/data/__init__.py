"""From files to micro-batches: tokenised datasets, packing, sampling, loading; and the tools that make such datasets.

``evocore.data.build`` is the door for the trainer, ``evocore.data.tokenize`` the one for the tools. Nothing on the
way to the tools imports torch, so that their worker processes start fast.
"""
