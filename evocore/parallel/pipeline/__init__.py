"""Pipeline parallelism: each stage of ranks holds some of the layers, and micro-batches pass through all of them.

``schedules`` says in plain tables which rank computes what when, ``checking`` proves tables and draws their timeline,
``messages`` derives from them what is sent to whom, and ``engine`` executes them. ``split`` deals out the layers, and
``deferral`` takes a backward pass apart for the schedules that fill bubbles with gradients of weights.
"""
