"""Checkpoints that survive a crash, a full disk, a change of layout and a stranger's bytes.

One checkpoint is one folder, ``<folder>/<step>/``:

====================  ===============================================================================================
``manifest.json``     written last: format, step, versions, world size, and the size and SHA-256 of every other file
``metadata.json``     every tensor's dtype and global shape, and the file and key that hold each chunk of it
``state.json``        what is not a tensor: counters, sampler and schedule state
``config.json``       the run's resolved config, if the caller gave one
``tensors-*``         safetensors files; a key is the tensor's name
``shards-*``          safetensors files of sharded tensors; a key is ``name@offset_offset...``
====================  ===============================================================================================

No file is ever unpickled. ``checkpointer`` holds the door for training (:class:`Checkpointer`); ``manifest``,
``contents`` and ``folder`` read a checkpoint's description without importing torch; ``compare`` reads two of them.
"""
